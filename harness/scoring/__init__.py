"""`bench score`: folders of predictions made elsewhere, measured against their references."""

from harness.scoring.folders import Scores, score_folders

__all__ = ["Scores", "score_folders"]
