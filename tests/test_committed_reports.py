"""Reports that are committed: every record is readable and planned, and no voxel of an image is among them."""

from pathlib import Path

import pandas as pd
import pytest

from harness.plan import make_plan
from harness.suite import load_suite

ROOT = Path(__file__).parent.parent
COMMITTED = sorted(p.parent for p in (ROOT / "reports").glob("*/records"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda p: p.name)
def test_every_record_belongs_to_the_suite_and_every_cell_has_one(folder: Path, tmp_path: Path) -> None:
    suite = load_suite(ROOT / "suites" / f"{folder.name}.yaml")
    entries = make_plan(suite, tmp_path, ROOT / "reports")
    assert {e.state for e in entries} <= {"ok", "stale"}, [e.cell.title for e in entries if e.record is None]
    for entry in entries:
        assert entry.record is not None and entry.folder is not None and entry.folder.is_relative_to(folder)
        rows = pd.read_csv(entry.folder / "cases.csv")
        assert sorted(set(rows["case"])) == sorted(entry.cell.data["test"])
    # one model and seed: the same start and the same data for every loss
    by_run: dict[tuple[str, int], list[dict[str, str]]] = {}
    for entry in entries:
        if entry.record:
            by_run.setdefault((entry.cell.model_label, entry.cell.seed), []).append(entry.record.fingerprints)
    assert all(p == prints[0] for prints in by_run.values() for p in prints)


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda p: p.name)
def test_no_image_is_committed_where_the_manifest_allows_contours_only(folder: Path) -> None:
    suite = load_suite(ROOT / "suites" / f"{folder.name}.yaml")
    if all(m.spec.figures == "images" for m in suite.manifests.values()):
        pytest.skip("the manifest allows images")
    for path in [folder / "index.html", *folder.glob("figures/*.svg")]:
        text = path.read_text(encoding="utf-8")
        assert "<image" not in text and "data:image/png" not in text, path
    attribution = next(iter(suite.manifests.values())).spec.attribution.split(";")[0]
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert attribution in page and "CC-BY-SA 4.0" in page
    assert not [p for p in folder.rglob("*") if p.suffix in (".gz", ".nii", ".pt", ".npz", ".npy")]
