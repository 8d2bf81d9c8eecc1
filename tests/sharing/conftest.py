"""The helpers of this folder on the path of its tests (`from shared import make_archive`)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
