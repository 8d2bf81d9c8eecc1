"""Cases as ranges and as what a folder holds, splits by fractions and by `*`, tables of spacings."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from harness.data.cases import CaseRange, natural, sorted_cases
from harness.data.layouts import Volume, reader_of
from harness.data.manifest import Manifest, load_manifest, packed
from harness.data.phantoms import make_phantom
from harness.errors import BenchError

TEXT = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: Ask the author.
layout: {files: {image: "img/{case}.nii.gz", label: "lab/{case}.nii.gz"}}
modalities: [CT]
labels: {a: 3, b: 1}
intensity: {window: [0, 1]}
cases: [p1, p2, p3, p4, p5]
splits: {s: {folds: 5}}
"""


def _load(tmp_path: Path, *changes: tuple[str, str], more: str = "", **options: object) -> Manifest:
    text = TEXT + more
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "toy.yaml").write_text(text)
    return load_manifest("toy.yaml", tmp_path, **options)  # type: ignore[arg-type]


LISTED = "cases: [p1, p2, p3, p4, p5]"


def test_a_range_is_the_list_that_it_stands_for(tmp_path: Path) -> None:
    short = _load(tmp_path, (LISTED, 'cases: {pattern: "p{}", from: 1, to: 5}'))
    assert short.cases == ("p1", "p2", "p3", "p4", "p5")
    assert short.digest() == _load(tmp_path).digest()
    gaps = _load(tmp_path, (LISTED, 'cases: {pattern: "c_{:03d}", from: 8, to: 14, except: [9, 12]}'))
    assert gaps.cases == ("c_008", "c_010", "c_011", "c_013", "c_014")
    mixed = _load(
        tmp_path, (LISTED, 'cases: [x, {pattern: "p{}", from: 1, to: 2}, y, {pattern: "q{}", from: 0, to: 1}]')
    )
    assert mixed.cases == ("x", "p1", "p2", "y", "q0", "q1")
    assert CaseRange.model_validate({"pattern": "{:02d}", "from": 3, "to": 3}).names() == ["03"]


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ('{pattern: "p", from: 1, to: 5}', "must take one number"),
        ('{pattern: "p{:>99999999}", from: 1, to: 5}', "must take one number"),
        ('{pattern: "p{}", from: 1, to: 1000000000}', "more than 100,000 cases in a range"),
        ('{pattern: "p{}{}", from: 1, to: 5}', "must take one number, as in 'case_{:03d}'"),
        ('{pattern: "p{:q}", from: 1, to: 5}', "must take one number"),
        ('{pattern: "p{0.x}", from: 1, to: 5}', "must take one number"),
        ('{pattern: "p{}", from: 5, to: 1}', "the range from 5 to 1 is empty"),
        ('{pattern: "p{}", from: 1, to: 5, except: [7]}', "`except` names 7, which is not between 1 and 5"),
        ('{pattern: "p{}", from: 1}', "has the keys pattern, from, to and except; to: Field required"),
        ('{pattern: "p{}", first: 1, to: 2}', "has the keys pattern, from, to and except"),
        ('[p1, {pattern: "p{}", from: 1, to: 5}]', "case 'p1' stands twice"),
        ('{pattern: "p/{}", from: 1, to: 5}', "case 'p/1' names a file"),
        ("{found: 0}", "expected a number from 1, found 0."),
        ("[]", "no case is named"),
        ("all", "toy.yaml:10: cases"),
    ],
)
def test_mistakes_in_cases(tmp_path: Path, cases: str, words: str) -> None:
    with pytest.raises(BenchError) as error:
        _load(tmp_path, (LISTED, f"cases: {cases}"))
    assert "toy.yaml:10" in str(error.value) and words in str(error.value)


def _write(manifest: Manifest, root: Path, cases: list[str]) -> None:
    reader = reader_of(manifest, root)
    for case in cases:
        grid = np.zeros((1, 2, 3, 4), np.float32)
        reader.write(case, Volume(grid, np.zeros((2, 3, 4), np.uint8), (1.0, 1.0, 1.0)))


def test_found_cases_are_those_of_the_folder_in_natural_order(tmp_path: Path) -> None:
    bare = _load(tmp_path, (LISTED, "cases: found"))
    for use in (lambda: bare.cases, lambda: bare.parts("s", 0)):
        with pytest.raises(BenchError, match=r"the cases of toy are those in its folder: say where with --data FOLDER"):
            use()
    root = tmp_path / "data"
    with pytest.raises(
        BenchError, match=r"data holds no case of toy: .*/data/lab/\{case\}.nii.gz\. There is no folder .* Ask"
    ):
        _ = _load(tmp_path, (LISTED, "cases: found"), root=root).cases
    names = ["p10", "p2", "p1", "p9", "p11"]
    _write(bare, root, names)
    (root / "lab/.hidden.nii.gz").write_bytes(b"")
    (root / "lab/notes.txt").write_bytes(b"")
    found = _load(tmp_path, (LISTED, "cases: found"), root=root)
    assert found.cases == ("p1", "p2", "p9", "p10", "p11")
    assert sorted(c for f in range(5) for c in found.parts("s", f).test) == sorted(names)
    assert found.digest() == bare.digest()  # which cases there are enters a cell's id by its parts
    counted = _load(tmp_path, (LISTED, "cases: {found: 5}"), root=root)
    assert counted.cases == found.cases and counted.digest() == found.digest()
    with pytest.raises(BenchError, match="holds 5 cases of toy, its manifest expects 7; complete the folder"):
        _ = _load(tmp_path, (LISTED, "cases: {found: 7}"), root=root).cases


def test_the_phantom_of_found_cases(tmp_path: Path) -> None:
    change = (LISTED, "cases: {found: 900}")
    more = "phantom: {scene: blobs, shape: [4, 16, 16], cases: [a, b, c, d, e]}\n"
    manifest = _load(tmp_path, change, more=more, phantom=True)
    assert manifest.cases == ("a", "b", "c", "d", "e") and len(manifest.parts("s", 0).test) == 1
    assert manifest.digest() == _load(tmp_path, change).digest()  # how a phantom looks changes no id
    with pytest.raises(BenchError, match=r"phantom.cases: names of the phantom's cases are needed"):
        _load(tmp_path, change, more="phantom: {scene: blobs, shape: [4, 16, 16]}\n", phantom=True)
    with pytest.raises(BenchError, match=r"`phantom\.cases` is only for `cases: found`"):
        _load(tmp_path, more=more)
    with pytest.raises(BenchError, match="the layout `phantom` has no folder to find cases in"):
        _load(tmp_path, change, (TEXT.splitlines()[5], "layout: {phantom: {shape: [4, 16, 16], seed: 0}}"))


def test_natural_order() -> None:
    assert sorted_cases(["c10", "c9", "b", "c9a", "7", "c9", "c09"]) == ["7", "b", "c09", "c9", "c9a", "c10"]
    assert sorted_cases(["1²3", "²", "a"]) == ["1²3", "a", "²"]  # a digit, but no number
    assert sorted(["x10_2", "x2_10", "x2_9"], key=natural) == ["x2_9", "x2_10", "x10_2"]


def test_fractions_deal_patients(tmp_path: Path) -> None:
    cases = [f"p{i:02d}_{k}" for i in range(10) for k in "xy"]
    change = [
        (LISTED, f"cases: [{', '.join(cases)}]\npatient: '(p[0-9]+)_'"),
        ("{folds: 5}", "{fractions: [0.6, 0.2, 0.2], seed: 3}"),
    ]
    parts = _load(tmp_path, *change).parts("s", None)
    order = [f"p{i:02d}" for i in range(10)]
    random.Random(3).shuffle(order)
    for part, patients in ((parts.train, order[:6]), (parts.val, order[6:8]), (parts.test, order[8:])):
        assert list(part) == [c for c in cases if c[:3] in patients]
    other = _load(tmp_path, *change, ("seed: 3", "seed: 4")).parts("s", None)
    assert other != parts
    two = _load(tmp_path, *change, ("[0.6, 0.2, 0.2]", "[0.75, 0, 0.25]")).parts("s", None)
    assert len(two.val) == 0 and len(two.train) + len(two.test) == 20


def test_nfbs_is_dealt_60_20_20(tmp_path: Path) -> None:
    manifest = load_manifest("nfbs", packed("suites"), tmp_path)
    for i in range(125):
        folder = tmp_path / f"NFBS_Dataset/A{i:08d}"
        folder.mkdir(parents=True)
        (folder / f"sub-A{i:08d}_ses-NFB3_T1w_brainmask.nii.gz").touch()
    parts = manifest.parts("jadon-60-20-20", None)
    assert [len(p) for p in (parts.train, parts.val, parts.test)] == [75, 25, 25]
    assert len({*parts.train, *parts.val, *parts.test}) == 125


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("{fractions: [0.6, 0.2, 0.1]}", "add up to 1"),
        ("{fractions: [1.2, 0.0, -0.2]}", "add up to 1"),
        ("{fractions: [0.8, 0.2, 0]}", "only the second may be 0"),
        ("{fractions: [0.9, 0.05, 0.05]}", "5 patients are too few"),
        ("{fractions: [0.6, 0.2, 0.2], folds: 5}", "`folds` and `fractions` both deal"),
        ("{fractions: [0.6, 0.2, 0.2], test: [p1]}", "`fractions` deals all cases out by itself"),
        ("{test: ['q*']}", "splits.s.test: no case matches 'q*'"),
        ("{test: ['p*']}", "no cases are left for training"),
        ("{test: ['p1*'], val: [p1]}", "patient 'p1' stands in two parts"),
        ("{test: ['p1', 'p*1']}", "splits.s.test: case 'p1' stands here twice"),
    ],
)
def test_mistakes_in_splits(tmp_path: Path, split: str, words: str) -> None:
    with pytest.raises(BenchError) as error:
        _load(tmp_path, ("{folds: 5}", split))
    assert "toy.yaml:11" in str(error.value) and words in str(error.value)


def test_a_star_stands_for_all_cases_that_match(tmp_path: Path) -> None:
    parts = _load(tmp_path, ("p4, p5", "q.4, qx4"), ("{folds: 5}", "{test: ['q.*'], val: ['*3']}")).parts("s", None)
    assert parts.test == ("q.4",) and parts.val == ("p3",) and parts.train == ("p1", "p2", "qx4")
    city = load_manifest("cityscapes", packed("suites"), phantom=True).parts("official", None)
    assert {c.split("_")[0] for c in city.test} == {"frankfurt", "lindau", "munster"} and len(city.train) == 8


def test_a_table_of_spacings(tmp_path: Path) -> None:
    rows = "{" + ", ".join(f"p{i}: [{i}.5, 0.75, 0.5]" for i in range(1, 6)) + "}"
    inline = _load(tmp_path, more=f"spacing: {rows}\n")
    _write(inline, tmp_path, ["p2"])
    assert reader_of(inline, tmp_path).read("p2").spacing == (2.5, 0.75, 0.5)  # not the header's
    (tmp_path / "mm.yaml").write_text("\n".join(f"p{i}: [{i}.5, 0.75, 0.5]" for i in range(1, 6)))
    beside = _load(tmp_path, more="spacing: mm.yaml\n")
    assert beside.spacing_of("p5", None) == (5.5, 0.75, 0.5) and beside.digest() == inline.digest()
    assert inline.digest() != _load(tmp_path).digest()
    assert _load(tmp_path, more="spacing: header\n").digest() == _load(tmp_path).digest()
    for more, words in (
        ("spacing: {p1: [1, 1, 1]}\n", "spacing: the table has no spacing of case 'p2' (4 cases are not in it)"),
        ("spacing: {p1: [1, 1]}\n", "spacing"),
        ("spacing: {p1: [1, 0, 1]}\n", "greater than 0"),
        ("spacing: {p1: [1, .inf, 1]}\n", "finite"),
        ("spacing: none\n", "spacing is `header`, `unknown`, a table of case: [z, y, x] in mm, or a file x.yaml"),
        ("spacing: other.yaml\n", "other.yaml: no such file"),
    ):
        with pytest.raises(BenchError) as error:
            _load(tmp_path, more=more)
        assert words in str(error.value), error.value
    npz = load_manifest("synapse_npz", packed("suites"))
    with pytest.raises(BenchError, match="the files of this layout state no spacing; write `unknown` or a table"):
        _load(tmp_path).spacing_of("p1", None)
    assert npz.spacing_of("0001", None) is None


def test_the_digests_of_the_first_data_sets_stay() -> None:
    # committed records have ids that are made of these
    for name, digest in (("phantom", "c5d27e3c539f"), ("hippocampus", "be511470d781"), ("synapse", "b738a085437e")):
        assert load_manifest(name, packed("suites")).digest().startswith(digest)


def test_wrong_options_of_a_layout(tmp_path: Path) -> None:
    for layout, words in (
        ("{brats: {}}", "layout.brats: wrong options: missing a required argument: 'folder'; its options: folder."),
        ("{brats: {folder: x, depth: 3}}", "got an unexpected keyword argument 'depth'"),
        ("{acdc: {folder: 3}}", "layout.acdc.folder: expected text, found 3"),
        ("{nnunet: {folder: x, ending: .npy}}", "layout.nnunet.ending: expected one of"),
        ("{synapse_npz: {folder: x, volumes: all}}", "expected a list of cases, found 'all'"),
        ('{files: {image: "a", label: "{case}"}}', "'a' must contain {case} and no other braces"),
        ('{files: {image: "{case}{x}", label: "{case}"}}', "must contain {case} and no other braces"),
        ('{files: {image: [], label: "{case}"}}', "0 image patterns, 1 modalities"),
        ('{files: {image: ["{case}", 3], label: "{case}"}}', "layout.files.image: expected text, found 3"),
        ('{files: {image: "{case}", label: "{case}", merge: 3}}', "expected label value: value it counts as"),
        ('{files: {image: "{case}", label: "{case}", merge: {7: 1}}}', "value 7 is also in `drop` or `ignore`"),
        ("{phantom: {shape: [1, 2], seed: 0}}", "expected [z, y, x], found [1, 2]"),
    ):
        manifest = _load(tmp_path, (TEXT.splitlines()[5], f"layout: {layout}"), more="drop: [7]\n")
        with pytest.raises(BenchError) as error:
            reader_of(manifest, tmp_path)
        assert "toy.yaml:6" in str(error.value) and words in str(error.value), error.value


PROTOCOL = {  # typed from the protocols, not from the manifests
    "synapse_npz": (30, "transunet-18-12", None, (18, 0, 12)),
    "lits": (131, "kfold5", 0, (104, 0, 27)),
    "brats2020": (369, "kfold5", 4, (296, 0, 73)),
    "acdc": (200, "common-70-10-20", None, (140, 20, 40)),
}


@pytest.mark.parametrize("name", PROTOCOL)
def test_published_splits(name: str) -> None:
    count, split, fold, sizes = PROTOCOL[name]
    manifest = load_manifest(name, packed("suites"))
    parts = manifest.parts(split, fold)
    assert len(manifest.cases) == count and (len(parts.train), len(parts.val), len(parts.test)) == sizes


def test_the_published_patients_of_acdc() -> None:
    parts = load_manifest("acdc", packed("suites")).parts("common-70-10-20", None)
    test = [
        "002",
        "003",
        "008",
        "009",
        "012",
        "014",
        "017",
        "024",
        "042",
        "048",
        "049",
        "053",
        "055",
        "064",
        "067",
        "079",
        "081",
        "088",
        "092",
        "095",
    ]
    val = ["019", "021", "029", "033", "041", "050", "061", "071", "076", "080"]
    for part, ids in ((parts.test, test), (parts.val, val)):
        assert set(part) == {f"patient{i}_{phase}" for i in ids for phase in ("ED", "ES")}


def test_values_in_the_files_of_what_is_measured(tmp_path: Path) -> None:
    assert load_manifest("lits", packed("suites")).file_values == {"liver": (1, 2)}  # a tumour is liver
    assert load_manifest("synapse", packed("suites")).file_values["aorta"] == (8,)
    found = load_manifest("brats2020", packed("suites")).file_values
    assert found == {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}


DOCS = packed("suites").parent / "docs/data.md"


@pytest.mark.skipif(not DOCS.is_file(), reason="the docs lie in a checkout")
def test_the_manifests_of_the_docs(tmp_path: Path) -> None:
    polyps, chest = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "polyps.yaml").write_text(polyps)
    (tmp_path / "chest.yaml").write_text(chest)
    photos = load_manifest("polyps.yaml", tmp_path, tmp_path)
    reader = reader_of(photos, tmp_path)
    for i in range(10):
        made = Volume(np.full((3, 1, 4, 5), i, np.float32), np.ones((1, 4, 5), np.uint8), None)
        reader.write(f"p{i}", made)
    parts = photos.parts("thirds", None)
    assert [len(p) for p in (parts.train, parts.val, parts.test)] == [6, 2, 2] and reader.read("p7").image.mean() == 7
    quick = load_manifest("polyps.yaml", tmp_path, phantom=True)
    make_phantom(quick, quick.cases[:2], tmp_path / "phantom")
    assert len(quick.cases) == 6 and (reader_of(quick, tmp_path / "phantom").read("p02").label == 1).any()
    manifest = load_manifest("chest.yaml", tmp_path)
    fixed = manifest.parts("fixed", None)
    assert len(manifest.cases) == 39 and fixed.val == ("chest_029",) and len(fixed.test) == 10 == 40 - 30
    made = Volume(np.ones((1, 3, 4, 5), np.float32), np.full((3, 4, 5), 2, np.uint8), (2.0, 1.0, 1.0))
    reader_of(manifest, tmp_path).write("chest_001", made)
    assert (tmp_path / "chest/chest_001/dicom/0003.dcm").is_file()
    assert (reader_of(manifest, tmp_path).read("chest_001").label == 2).all()
    listed = set(
        re.findall(
            r"`([a-z_0-9]+)`", "".join(DOCS.read_text(encoding="utf-8").split("## Your own")[0].splitlines()[6:])
        )
    )
    assert {p.stem for p in packed("data_manifests").glob("*.yaml")} <= listed


def test_what_brats_evaluates() -> None:
    manifest = load_manifest("brats2020", packed("suites"))
    values = {n: {list(manifest.spec.labels.values())[i - 1] for i in m} for n, m in manifest.measured.items()}
    assert values == {"WT": {1, 2, 4}, "TC": {1, 4}, "ET": {4}}
    assert manifest.spec.modalities == ["T1", "T1ce", "T2", "FLAIR"]
