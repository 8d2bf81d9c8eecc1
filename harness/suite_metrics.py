"""What a suite asks to be measured: names of metrics, profiles and the engine, checked before anything is planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import BenchError
from harness.metrics.table import (
    ALSO_CALLED,
    ENGINES,
    EVERY_LOSS,
    LOSS,
    PROFILES,
    canonical,
    check_metrics,
    check_profiles,
    metric_of,
)
from harness.suite_losses import every_loss
from harness.yamlfile import YamlFile, nearest

if TYPE_CHECKING:
    from harness.suite_file import SuiteFile


def canonical_metrics(spec: SuiteFile, file: YamlFile) -> SuiteFile:
    """The suite with one spelling of every metric: `nsd@2.0` is `nsd@2`.

    Raises:
        BenchError: A metric, a profile or the engine is unknown, a metric stands twice, or no profile has it.
    """
    for i, name in enumerate(spec.profile if isinstance(spec.profile, list) else [spec.profile]):
        where = ("profile", i) if isinstance(spec.profile, list) else ("profile",)
        _known(file, where, "profile", name, PROFILES)
        if isinstance(spec.profile, list) and name in spec.profile[:i]:
            raise file.error(where, f"the profile {name!r} stands here a second time; keep one.")
    if not spec.profile:
        raise file.error(("profile",), f"the list is empty; name one of {', '.join(PROFILES)}.")
    _known(file, ("engine",), "engine", spec.engine, ENGINES)
    metrics: list[str] = []
    for i, name in enumerate(spec.metrics):
        if name.strip() == EVERY_LOSS:
            metrics += [m for m in every_loss(spec, file, ("metrics", i)) if m not in metrics]
            continue
        found = _metric(file, ("metrics", i), name)
        if found in metrics:
            raise file.error(("metrics", i), f"the metric {found!r} stands here a second time; keep one.")
        if metric_of(found)[0].scope == "case":  # the others are made of the counts, which every profile has
            try:
                check_metrics([found], check_profiles(spec.profile))
            except BenchError as error:
                raise file.error(("metrics", i), str(error)) from None
        metrics.append(found)
    by = [_metric(file, ("rank", "by", i), name, metrics) for i, name in enumerate(spec.rank.by)]
    for i, name in enumerate(by):
        if name.startswith(LOSS):
            raise file.error(("rank", "by", i), f"{name!r} favours the loss itself; rank by a metric such as dice.")
    update: dict[str, Any] = {"metrics": metrics, "rank": spec.rank.model_copy(update={"by": by})}
    if spec.select != "last":
        name = _metric(file, ("select",), spec.select.removeprefix("best:").removesuffix("@val"), metrics)
        if metric_of(name)[0].unit_kind == "count":
            raise file.error(("select",), f"{name!r} is a count of voxels, which says nothing of quality.")
        update["select"] = f"best:{name}@val"
    if spec.tune is not None:
        update["tune"] = spec.tune.model_copy(update={"metric": _tuned_by(spec.tune.metric, spec, file)})
    return spec.model_copy(update=update)


def _tuned_by(given: str, spec: SuiteFile, file: YamlFile) -> str:
    """The canonical name of the metric that trials are compared by; it need not be among the suite's."""
    where = ("tune", "metric")
    name = _metric(file, where, given.removesuffix("@val"))
    found = metric_of(name)[0]
    if found.unit_kind == "count" or name.startswith(LOSS):
        raise file.error(where, f"{name!r} says nothing of quality; tune by a metric such as dice@val.")
    if found.scope == "case":
        try:
            check_metrics([name], check_profiles(spec.profile))
        except BenchError as error:
            raise file.error(where, str(error)) from None
    return f"{name}@val"


def _metric(file: YamlFile, where: tuple[Any, ...], name: str, among: list[str] | None = None) -> str:
    """The canonical name of a metric, which is one of `among`."""
    if among is None:
        try:
            return canonical(name)
        except BenchError as error:
            raise file.error(where, str(error)) from None
    try:
        found = canonical(name)
    except BenchError:
        found = name
    if found not in among:
        near = nearest(name, among, ALSO_CALLED)
        raise file.error(where, f"{name!r} is not among the suite's metrics{near}; it has: {', '.join(among)}.")
    return found


def _known(file: YamlFile, where: tuple[Any, ...], what: str, name: str, known: dict[str, Any]) -> None:
    if name not in known:
        raise file.error(where, f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}.")


def of_volumes(spec: SuiteFile) -> dict[str, Any]:
    """The metrics that the phantom, a volume, can be measured with."""
    kept = [m for m in spec.metrics if 3 in metric_of(m)[0].dims] or ["dice"]
    by = [m for m in spec.rank.by if m in kept] or kept[:1]
    return {"metrics": kept, "rank": spec.rank.model_copy(update={"by": by})}
