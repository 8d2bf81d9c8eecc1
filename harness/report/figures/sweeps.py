"""Training-loss curves of a hyperparameter's values side by side, as in Azad et al. 2023, Figure 8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.figures.base import SuitePicture, drawing, grid, left_out, looks, plain, save, short
from harness.report.figures.curves import curve_panel, finished
from harness.report.frames import Frames
from harness.report.layouts import DEFAULT, arguments_of

MAX_LINES = 10
MAX_PANELS = 48


@dataclass(frozen=True)
class Sweep:
    """Settings of one loss that differ in one argument, or in arguments that move together.

    Attributes:
        loss: Name of the loss.
        argument: Name of the argument, or several, joined.
        fixed: The arguments that stay, `alpha=0.25`; empty where there are none.
        settings: Label of each loss of the suite, and its value.
    """

    loss: str
    argument: str
    fixed: str
    settings: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """`focal: gamma (alpha=0.25)`."""
        return f"{self.loss}: {self.argument}" + (f" ({self.fixed})" if self.fixed else "")


def sweeps_of(losses: Sequence[str]) -> list[Sweep]:
    """The sweeps among labels such as `focal(gamma=2)`; a loss without shown arguments stands in as `default`."""
    read = [(label, found) for label in losses if (found := arguments_of(label)) is not None]
    out: list[Sweep] = []
    for name in dict.fromkeys(name for _, (name, _) in read):
        own = [(label, args) for label, (found, args) in read if found == name]
        made = [s for key in dict.fromkeys(k for _, args in own for k in args) for s in _over(name, key, own)]
        covered = {label for s in made for label, _ in s.settings}
        out += made + _together(name, [(label, args) for label, args in own if label not in covered])
    return out


def _over(name: str, key: str, own: Sequence[tuple[str, dict[str, str]]]) -> list[Sweep]:
    """The sweeps of one argument, one for each setting of the others."""
    parts: dict[str, list[tuple[str, str]]] = {}
    for label, args in own:
        if key in args or not args:
            fixed = ", ".join(f"{k}={v}" for k, v in args.items() if k != key)
            parts.setdefault(fixed, []).append((label, args.get(key, DEFAULT)))
    return [
        Sweep(name, key, fixed, tuple(settings))
        for fixed, settings in parts.items()
        if len({value for _, value in settings}) > 1
    ]


def _together(name: str, own: Sequence[tuple[str, dict[str, str]]]) -> list[Sweep]:
    """What no single argument explains: the arguments that were moved together."""
    parts: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for label, args in own:
        parts.setdefault(tuple(args), []).append((label, ", ".join(args.values())))
    return [Sweep(name, ", ".join(keys), "", tuple(found)) for keys, found in parts.items() if keys and len(found) > 1]


def sweep_curves(frames: Frames, group: str, model: str, folder: Path, name: str) -> SuitePicture | None:
    """Training loss per epoch, one panel per loss and argument, one line per value; None without a sweep."""
    rows = finished(frames, group, "loss_value")
    rows = rows[rows["model"] == model]
    there = set(rows["loss"])
    found = sweeps_of([x for x in frames.losses if x in there])
    if not found:
        return None
    shown = found[:MAX_PANELS]
    across = min(3, len(shown))
    title = f"Training loss by hyperparameter on {plain(group)}, {plain(model)}"
    with drawing():
        size = (3.2 * across if across > 1 else 5.2, 2.5 * math.ceil(len(shown) / across) + 0.1)
        figure = Figure(figsize=size, layout="constrained")
        axes = grid(figure, len(shown), across)
        logged = [_panel(ax, rows, sweep) for ax, sweep in zip(axes, shown, strict=True)]
        for ax in axes[::across]:
            ax.set_ylabel("training loss")
        svg = save(figure, folder, name, title)
    caption = (
        "One panel per loss and argument, one line per value, mean over runs; band: smallest to largest run. Another "
        "value is another loss: compare the shape of the curves, not their height."
        + " Logarithmic where the values span more than a factor of 50." * any(logged)
        + f" Of a sweep with more than {MAX_LINES} values, {MAX_LINES} are drawn."
        * any(len(s.settings) > MAX_LINES for s in shown)
        + left_out(len(shown), len(found), "sweeps")
    )
    return SuitePicture(name, svg, title, caption, group, model)


def drawn(settings: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """At most `MAX_LINES` of the settings, evenly spread, with the first and the last."""
    if len(settings) <= MAX_LINES:
        return list(settings)
    return [settings[int(i)] for i in np.linspace(0, len(settings) - 1, MAX_LINES).round()]


def _panel(ax: Axes, rows: pd.DataFrame, sweep: Sweep) -> bool:
    settings = drawn(sweep.settings)
    look = looks([label for label, _ in settings])
    logged = curve_panel(ax, [(look[label], rows[rows["loss"] == label]) for label, _ in settings])
    ax.set_title(short(sweep.title, 40))
    ax.set_xlabel("epoch")
    handles = [Line2D([], [], linewidth=1.4, markersize=4, **look[label].line()) for label, _ in settings]
    names = [short(value, 18) for _, value in settings]
    ax.legend(
        handles, names, title=short(sweep.argument, 24), loc="upper right", frameon=False, fontsize=7,
        title_fontsize=7, handlelength=2.4, labelspacing=0.3,
    )  # fmt: skip
    return logged
