"""The helpers of this folder on the path of its tests (`from scored import made_folders`)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
