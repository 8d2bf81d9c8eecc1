"""What `bench list` shows: name and one line of everything that a suite can ask for. Imports only what is listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _classes(table: dict[str, str]) -> list[tuple[str, str]]:
    from harness.resolve import summary

    return [(name, summary(target)) for name, target in table.items()]


def _losses() -> list[tuple[str, str]]:
    from harness.losses import LOSSES

    return _classes(LOSSES)


def _models() -> list[tuple[str, str]]:
    from harness.models import MODELS

    return [
        *_classes(MODELS),
        ("NAME", "any network of monai.networks.nets by its class name"),
        ("pkg.mod:Class", "any torch.nn.Module"),
    ]


def _metrics() -> list[tuple[str, str]]:
    from harness.metrics import METRICS

    family = ("loss:NAME", "value of a loss on the network's logits of a case; loss:* for every loss of the suite")
    return [*((m.name, f"{m.title}: {m.about}") for m in METRICS.values()), family]


def _profiles() -> list[tuple[str, str]]:
    from harness.metrics import PROFILES

    return [(p.name, p.about) for p in PROFILES.values()]


def _engines() -> list[tuple[str, str]]:
    from harness.metrics import ENGINES

    return [*ENGINES.items()]


def _manifests() -> list[tuple[str, str]]:
    from harness.data.manifest import load_manifest, packed

    folders = dict.fromkeys(p.resolve() for p in (Path("data_manifests"), packed("data_manifests")) if p.is_dir())
    paths = {p.stem: p for folder in reversed(folders) for p in sorted(folder.glob("*.yaml"))}
    return [(name, load_manifest(str(path.resolve()), path.parent).spec.title) for name, path in sorted(paths.items())]


def _suites() -> list[tuple[str, str]]:
    from harness.data.manifest import packed
    from harness.yamlfile import read_yaml

    folders = dict.fromkeys(p.resolve() for p in (Path("suites"), packed("suites")) if p.is_dir())
    paths = {p.stem: p for folder in reversed(folders) for p in sorted(folder.glob("*.yaml"))}
    return [
        (name, str(read_yaml(p).data.get("description", "")).strip().split("\n")[0])
        for name, p in sorted(paths.items())
    ]


LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "losses": _losses,
    "models": _models,
    "metrics": _metrics,
    "profiles": _profiles,
    "engines": _engines,
    "data": _manifests,
    "suites": _suites,
}
