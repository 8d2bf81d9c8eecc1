"""Phantoms of data sets: procedural cases written in a data set's own layout, for quick runs and for tests.

What is drawn is a scene of `harness.data.scenes`; the reader of the layout writes it, so that everything behind it
reads files as it would read the real ones. Nothing in it is a patient, and no number of it says anything of a loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.claims import waited_for
from harness.data.manifest import Manifest
from harness.data.manifest_file import Phantom as Look
from harness.data.scenes import SCENES, VOID, Drawn, Order, draw, scene_of
from harness.errors import BenchError
from harness.records import write_atomic

if TYPE_CHECKING:
    from harness.data.layouts import Volume

PHANTOM_VERSION = 1  # raised when the same case would look otherwise; it enters the ids of quick cells

Progress = Callable[[int, int], None]

_STATE = ".phantom"  # folder in a phantom: what is made, and the lease

# Other names of the scenes' classes, as data sets have them; compared without case and without what is no letter.
_ALIASES: dict[str, tuple[str, ...]] = {
    "tumour": ("tumor", "livertumour", "livertumor", "lesion", "cancer"),
    "core": ("necrotic", "necrosis", "necroticcore", "nonenhancing", "nonenhancingcore", "ncr", "ncrnet", "net"),
    "oedema": ("edema", "peritumouraloedema", "peritumoraledema", "ed"),
    "enhancing": ("enhancingtumour", "enhancingtumor", "et"),
    "right_ventricle": ("rv", "rightventricularcavity"),
    "left_ventricle": ("lv", "leftventricularcavity"),
    "myocardium": ("myo", "leftventricularmyocardium"),
    "brain": ("mask", "brainmask"),
}


def phantom_root(manifest: Manifest, cache: Path) -> Path:
    """Folder of a data set's phantom; another generator, manifest or look is another folder.

    Args:
        manifest: The data set.
        cache: Folder of the cache.
    """
    look = manifest.spec.phantom
    parts = [PHANTOM_VERSION, _sources(), manifest.digest(), None if look is None else look.model_dump(mode="json")]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return cache / "phantoms" / f"{manifest.name}-{key}"


def data_root(manifest: Manifest, root: Path | None, cache: Path, cases: Sequence[str]) -> Path | None:
    """Where a reader finds these cases: the folder of data, or of a quick run the phantom, in which they are now made.

    Args:
        manifest: The data set; loaded with `phantom=True` for a quick run.
        root: Folder in which data sets lie, or None.
        cache: Folder of the cache.
        cases: The cases that will be read.

    Raises:
        BenchError: The phantom cannot be made.
    """
    if not manifest.phantom or manifest.layout[0] == "phantom":
        return root
    folder = phantom_root(manifest, cache)
    make_phantom(manifest, cases, folder)
    return folder


def make_phantom(manifest: Manifest, cases: Sequence[str], folder: Path, progress: Progress | None = None) -> None:
    """Write the cases that are not there yet; several processes may do so at once.

    Args:
        manifest: The data set.
        cases: Its cases.
        folder: What takes the place of the folder of data; made where it is not there.
        progress: Called with the number of cases that are written, and of those to write.

    Raises:
        BenchError: The scene cannot be drawn or written, or the folder holds something that is no phantom.
    """
    from harness.data.layouts import reader_of

    if manifest.layout[0] == "phantom":
        raise BenchError(f"{manifest.name} is made while it is read: it has no files to write.")
    there = made_cases(folder)
    if not (todo := _lacking(manifest, cases, folder, there)):
        return
    with _writable(folder), _locked(folder):
        there = made_cases(folder)  # another process may have been quicker
        todo = _lacking(manifest, cases, folder, there)
        for number, case in enumerate(todo, start=1):
            with _moved_into(folder) as part:
                reader_of(manifest, part).write(case, phantom_volume(manifest, case))
            if progress is not None:
                progress(number, len(todo))
        if todo:
            known = {*there, *todo}
            every = [c for c in manifest.cases if c in known]
            with _moved_into(folder) as part:
                reader_of(manifest, part).finish(every)
            write_atomic(folder / _STATE / "cases.json", lambda stream: stream.write(json.dumps(every).encode()))


def is_phantom(folder: Path) -> bool:
    """Whether a folder is a phantom of `make_phantom`, and not a folder of data.

    Raises:
        BenchError: It cannot be entered.
    """
    from harness.data.layouts.base import is_there

    return is_there(folder / _STATE)


def made_cases(folder: Path) -> set[str]:
    """The cases of a phantom that are whole; none of a folder that is no phantom.

    A list that cannot be read counts as none, and the cases are made again.
    """
    try:
        return set(json.loads((folder / _STATE / "cases.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return set()


def phantom_volume(manifest: Manifest, case: str) -> Volume:
    """Draw one case in the manifest's classes; the same manifest and case give the same arrays.

    Raises:
        BenchError: The manifest's scene is unknown, or does not make one of its classes.
    """
    from harness.data.layouts import Volume

    spec = manifest.spec
    look = _look(manifest)
    try:
        scene = scene_of(look.scene)
        patient = manifest.patient_of(case) if scene.series else case
        frame = [c for c in manifest.cases if manifest.patient_of(c) == patient].index(case) if scene.series else 0
        seed = int.from_bytes(hashlib.sha256(f"{spec.name}/{patient}".encode()).digest()[:6], "big")
        drawn = draw(look.scene, Order(seed, look.shape, tuple(spec.labels), tuple(spec.modalities), frame))
    except BenchError as error:
        raise manifest.file.error(("phantom",), str(error)) from None
    table = np.zeros(256, np.uint8)
    table[: len(drawn.names) + 1] = _indices(manifest, look.scene, drawn)
    table[VOID] = 0 if spec.ignore is None else VOID
    spacing = manifest.spacing_of(case, look.spacing)
    origin = (0.0, 0.0, 0.0)
    if spacing is not None and spec.dimensions == 3:  # the middle of the body is the origin, in SimpleITK's order
        z, y, x = (-(n - 1) / 2 * s for n, s in zip(look.shape, spacing, strict=True))
        origin = (x, y, z)
    return Volume(drawn.image, table[drawn.label], spacing, origin)


def _look(manifest: Manifest) -> Look:
    """The manifest's section `phantom`; blobs where it has none."""
    if manifest.spec.phantom is not None:
        return manifest.spec.phantom
    depth, height, width = SCENES["blobs"].shape
    return Look(scene="blobs", shape=(1 if manifest.spec.dimensions == 2 else depth, height, width))


def _indices(manifest: Manifest, scene: str, drawn: Drawn) -> list[int]:
    """The manifest's index of background and of each class of the scene; 0 where it has no such class."""
    known: Mapping[str, int] = {_plain(name): index for name, index in manifest.classes.items()}
    found = []
    for name in drawn.names:
        words = _words(name) + (_words(drawn.part_of[name]) if name in drawn.part_of else [])
        found.append(next((known[w] for w in words if w in known), 0))
    lacking = [name for name, index in manifest.classes.items() if index not in found]
    if lacking:
        raise manifest.file.error(
            ("phantom", "scene"),
            f"the scene {scene} does not make class {lacking[0]!r}; it makes {', '.join(drawn.names)}. Take "
            "another scene, or `blobs`, which makes any classes.",
        )
    return [0, *found]


def _words(name: str) -> list[str]:
    return [_plain(name), *_ALIASES.get(name, ())]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


@cache
def _sources() -> str:
    """Digest of the code that draws and writes."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted([*here.glob("scenes/*.py"), *here.glob("layouts/*.py"), here / "phantom.py"]):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def _lacking(manifest: Manifest, cases: Sequence[str], folder: Path, made: set[str]) -> list[str]:
    from harness.data.layouts import reader_of

    wanted = list(dict.fromkeys(cases))
    if made.issuperset(wanted) and not reader_of(manifest, folder).missing(wanted):
        return []
    return [c for c in wanted if c not in made or reader_of(manifest, folder).missing([c])]


def _check_own(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"{folder} is a file; name an empty or a new folder for the phantom.")
    if folder.is_dir() and not is_phantom(folder) and any(folder.iterdir()):
        raise BenchError(f"{folder} holds files that are no phantom; name an empty or a new folder for it.")


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """One sentence where a folder cannot be written to."""
    try:
        _check_own(folder)
        yield
    except OSError as error:
        raise BenchError(f"{folder}: the phantom cannot be written there: {error.strerror or error}.") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the phantom while it is written; on one host the lease goes with the process, however it ends."""
    (folder / _STATE).mkdir(parents=True, exist_ok=True)
    with waited_for(folder / _STATE):
        for left in (folder / _STATE).glob("part-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def _moved_into(folder: Path) -> Iterator[Path]:
    """A folder to write into; what lies there at the end goes to its place, each file whole or not at all."""
    part = Path(tempfile.mkdtemp(prefix="part-", dir=folder / _STATE))
    try:
        yield part
        for path in sorted(p for p in part.rglob("*") if p.is_file()):
            target = folder / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
