"""The table of what tuning chose: values, validation score of the default and of the chosen, failed trials, cost."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from harness.grid import printed
from harness.metrics.table import metric_of
from harness.report.frames import Frames
from harness.report.view import NAN, Block, Column, Entry, Head, Row, TableView
from harness.report.words import count, number
from harness.tuning.told import Told

_SAID = (
    "Chosen on the validation patients alone; trial 0 is the suite's own configuration. The best of many trials is an "
    "optimistic number: how good the loss is, the test patients say."
)


def tuning_views(found: Sequence[Told], frames: Frames) -> list[TableView]:
    """One table per data set; none where nothing was tuned.

    Args:
        found: What the studies chose.
        frames: The prepared frames, for the names of the data sets.
    """
    keys = frames.cells.drop_duplicates(["dataset", "split"])
    names = {(d, s): str(g) for d, s, g in zip(keys["dataset"], keys["split"], keys["group"], strict=True)}
    groups: dict[str, list[Told]] = {}
    for one in found:
        groups.setdefault(names[one.cell.dataset, one.cell.data["split"]], []).append(one)
    return [_view(group, groups[group]) for group in frames.groups if group in groups]


def _view(group: str, found: Sequence[Told]) -> TableView:
    metric, _ = metric_of(found[0].tuned["metric"])
    scale = 100.0 if metric.unit_kind == "fraction" else 1.0
    folds = any(one.cell.data["fold"] is not None for one in found)
    repeats = any("patients" in one.cell.data for one in found)  # each then has a study of its own
    places = 2 if scale == 100 else 3
    columns = (
        *([Column("fold", words=True)] if folds else []),
        *([Column("repeat", words=True)] if repeats else []),
        Column("learning rate", words=True),
        Column("parameters", words=True),
        Column("default", places),
        Column("chosen", places),
        Column("chosen", words=True),
        Column("failed", words=True),
        Column("trials", 1),
        Column("trainings", 1),
    )
    heads = (
        *([Head("", folds + repeats)] if folds or repeats else []),
        Head("chosen", 2),
        Head(f"{metric.title}, validation{' (%)' if scale == 100 else ''}", 2, lower=not metric.higher_is_better),
        Head("trial", 2),
        Head("seconds", 2),
    )
    models = list(dict.fromkeys(one.cell.model_label for one in found))
    blocks = []
    for model in models:
        rows = []
        for one in (o for o in found if o.cell.model_label == model):
            t = one.tuned
            fold = one.cell.data["fold"]
            entries = (
                *([Entry(text="" if fold is None else str(fold))] if folds else []),
                *([Entry(text=str(one.cell.seed) if "patients" in one.cell.data else "")] if repeats else []),
                Entry(text=f"{t['lr']:g}"),
                Entry(text=_arguments(t["args"])),
                Entry(_scaled(t["default"], scale)),
                Entry(_scaled(t["value"], scale)),
                Entry(text=f"{t['trial']} of 0 to {t['trials'] - 1}"),
                Entry(text=f"{t['failed']}"),
                Entry(t["seconds"]),
                Entry(one.seconds, remark=count(one.runs, "run")),
            )
            rows.append(Row(one.cell.loss_label, entries))
        blocks.append(Block(model, tuple(rows)))
    trials, runs = sum(o.tuned["seconds"] for o in found), sum(o.seconds for o in found)
    lost = any(o.tuned["failed"] for o in found)
    but = ", without those that ended with an error, out of memory or by timeout;" if lost else ","
    cost = f"The trials took {number(trials, 0)} s{but} the final trainings {number(runs, 0)} s."
    return TableView("tuning", group, "Loss", heads, columns, tuple(blocks), (_SAID, cost), _frame(group, found))


def _arguments(args: dict[str, object]) -> str:
    return ", ".join(f"{k}={printed(v)}" for k, v in args.items()) or "the suite's"


def _scaled(value: float | None, scale: float) -> float:
    return NAN if value is None else value * scale


def _frame(group: str, found: Sequence[Told]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"dataset": group, "fold": o.cell.data["fold"],
             "repeat": o.cell.seed if "patients" in o.cell.data else None,
             "model": o.cell.model_label, "loss": o.cell.loss_label,
             "lr": o.tuned["lr"], "arguments": ", ".join(f"{k}={printed(v)}" for k, v in o.tuned["args"].items()),
             "metric": o.tuned["metric"], "validation_default": o.tuned["default"],
             "validation_chosen": o.tuned["value"], "trial": o.tuned["trial"], "trials": o.tuned["trials"],
             "failed": o.tuned["failed"], "trial_epochs": o.tuned["epochs"], "trials_s": o.tuned["seconds"],
             "trainings_s": o.seconds, "runs": o.runs}
            for o in found
        ]
    )  # fmt: skip
