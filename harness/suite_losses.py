"""The metrics `loss:NAME` of a suite: which losses score the trained networks, and why some cannot.

The leave-one-out cross-evaluation of Azad et al., 2023, section 5.6. A network is scored by its logits alone, so a loss
that reads more than logits and label, or that changes during its own training, has no value there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BenchError
from harness.grid import LossChoice, expand_losses, plain_losses
from harness.losses import LOSSES
from harness.losses.needs import CHANCE_NEEDS, HEADS, LABEL_NEEDS, MODEL_NEEDS, PROGRESS_NEEDS, SAMPLE_NEEDS
from harness.metrics.table import EVERY_LOSS, LOSS
from harness.resolve import locate, state_of
from harness.yamlfile import KeyPath, YamlFile, nearest

if TYPE_CHECKING:
    from harness.suite_file import SuiteFile

_STATES = {
    "epoch_end": "it changes from epoch to epoch of its own training",
    "prepare": "it is prepared before its own training",
    "Parameter": "it learns a parameter in its own training",
}


def refusal(spec: Mapping[str, Any]) -> str | None:
    """Why a loss cannot score a network, or None where it can.

    Args:
        spec: A canonical specification, see `harness.grid`.
    """
    if "sum" in spec:
        if any(not isinstance(term["weight"], (int, float)) for term in spec["sum"]):
            return "its weights follow the progress of its own training"
        reasons = ((term["loss"].get("name", "sum"), refusal(term["loss"])) for term in spec["sum"])
        return next((f"of its part {name}: {reason}" for name, reason in reasons if reason), None)
    found = locate(spec["class"], LOSSES, "loss", Path())
    asked = [name for name, _ in found.needs if name not in LABEL_NEEDS | SAMPLE_NEEDS]
    for name in asked:
        if name in MODEL_NEEDS or name in HEADS:
            return f"it reads {name!r} of the network, and logits are all that is kept"
        if name in PROGRESS_NEEDS:
            return "it follows the progress of its own training"
        if name in CHANCE_NEEDS:
            return "its value is drawn at random"
    state = state_of(found.target)
    return _STATES[state] if state else None


def every_loss(spec: SuiteFile, file: YamlFile, where: KeyPath) -> list[str]:
    """What `loss:*` stands for: the suite's losses that can score, as metrics.

    Raises:
        BenchError: With file and line: none can.
    """
    plain = _plain(spec, file)
    reasons = {label: refusal(choice.spec) for label, choice in plain.items()}
    kept = [f"{LOSS}{label}" for label, reason in reasons.items() if reason is None]
    if not kept:
        label, reason = next(iter(reasons.items()))
        raise file.error(where, f"{EVERY_LOSS}: no loss of the suite can score a network; {label}: {reason}.")
    return kept


def scoring_losses(spec: SuiteFile, file: YamlFile) -> dict[str, dict[str, Any]]:
    """The losses behind the suite's metrics `loss:NAME`, in the form of `Cell.scored_by`.

    A name is the label of one of the suite's losses, then that one without the rule `with`; else a loss by its name as
    in `losses`, with its defaults.

    Args:
        spec: The suite, with canonical metrics.
        file: Its file.

    Raises:
        BenchError: With file and line: there is no such loss, or it cannot score a network.
    """
    names = [name for name in spec.metrics if name.startswith(LOSS)]
    if not names:
        return {}
    plain = _plain(spec, file)
    out: dict[str, dict[str, Any]] = {}
    for name in names:
        where = ("metrics", _index(file, name))
        choice = _choice(name.removeprefix(LOSS), plain, file, where)
        reason = refusal(choice.spec)
        if reason is not None:
            raise file.error(where, f"{name!r}: {choice.label} cannot score a network: {reason}; leave it away.")
        out[name] = {"loss": choice.spec, "digest": choice.digest}
    return out


def _index(file: YamlFile, name: str) -> int:
    """Where a metric stands in the file's list; the place of `loss:*` where it does not stand by its name."""
    written = [str(m).strip() for m in file.data.get("metrics") or []]
    return next((i for i, m in enumerate(written) if m in (name, EVERY_LOSS)), 0)


def _plain(spec: SuiteFile, file: YamlFile) -> dict[str, LossChoice]:
    """The suite's losses by label, each without what `with` adds."""
    return {choice.label: choice for choice in expand_losses(spec.losses, None, file)}


def _choice(label: str, plain: Mapping[str, LossChoice], file: YamlFile, where: KeyPath) -> LossChoice:
    if label in plain:
        return plain[label]
    try:
        locate(label, LOSSES, "loss", file.path.parent)
    except BenchError:
        known = [*plain, *LOSSES]
        raise file.error(
            where,
            f"{LOSS}{label} is neither a loss of the suite nor one of `bench list losses`{nearest(label, known)}; the "
            f"suite has: {', '.join(plain)}.",
        ) from None
    return next(plain_losses(label, {}, file, where))
