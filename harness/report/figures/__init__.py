"""Figures of the report: curves, maps and diagrams, as SVG for the page and SVG, PNG and PDF on disk.

One module per kind. Each figure has a function that computes its numbers and one that draws them; a figure without
data is None. The same input gives the same bytes.
"""

from harness.report.figures.base import Picture, SuitePicture, drawing, inline, lighter, save
from harness.report.figures.cases import case_differences, case_map, dice_distribution
from harness.report.figures.classes import class_heatmap, class_table
from harness.report.figures.cost import cost_gain, cost_points
from harness.report.figures.curves import (
    LOG_FROM,
    MAX_EPOCHS,
    CurveKind,
    CurvePicture,
    curve_panel,
    epoch_means,
    finished,
    loss_curves,
    validation_curves,
    validation_metrics,
)
from harness.report.figures.draw import FIGURES, draw_all, drawing_all
from harness.report.figures.ranks import case_ranks, critical_difference
from harness.report.figures.responses import response_points, sweep_responses
from harness.report.figures.robustness import robustness_curves
from harness.report.figures.sizes import size_effects
from harness.report.figures.sweeps import sweep_curves, sweeps_of
from harness.report.figures.volume import running_median, volume_effect, volume_effects

__all__ = [
    "FIGURES", "LOG_FROM", "MAX_EPOCHS", "CurveKind", "CurvePicture", "Picture", "SuitePicture", "case_differences",
    "case_map", "case_ranks", "class_heatmap", "class_table", "cost_gain", "cost_points", "critical_difference",
    "curve_panel", "dice_distribution", "draw_all", "drawing", "drawing_all", "epoch_means", "finished", "inline",
    "lighter", "loss_curves", "response_points", "robustness_curves", "running_median", "save", "size_effects",
    "sweep_curves", "sweep_responses", "sweeps_of", "validation_curves", "validation_metrics", "volume_effect",
    "volume_effects",
]  # fmt: skip
