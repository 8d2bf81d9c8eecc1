"""`bench score`: predictions made elsewhere, from files to the table, the CSV and the exit code."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scored import LABELS, SPACING, made, made_folders, refused, volumes, write

from harness.cli import main
from harness.errors import BenchError
from harness.metrics import evaluate
from harness.records import read_rows
from harness.scoring.command import _tables, policy_line
from harness.scoring.folders import COLUMNS, score_folders
from harness.scoring.images import Header, read_header, read_labels
from harness.scoring.summary import summarise


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return made_folders(tmp_path)


def test_the_same_numbers_as_evaluate_whatever_the_format(folders, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "rows.csv"
    metrics, profiles = ["dice", "hd95", "asd", "nsd@1", "volume_difference"], ["voxel-max", "area"]
    args = ["score", *map(str, folders), "--labels", "disc=1,ring=2,both=1+2", "--metrics", ",".join(metrics)]
    args += ["--profile", ",".join(profiles), "--engine", "points", "--out", str(out)]
    assert main(args) == 0
    rows = read_rows(out)
    assert tuple(rows[0]) == COLUMNS
    want = []
    for number in range(3):
        pred, ref = volumes(number)
        # NIfTI keeps float32, and the reference's spacing is the one that counts
        sides = tuple(map(float, np.float32(SPACING))) if number < 2 else SPACING
        for row in evaluate(pred, ref, sides, LABELS, profiles, metrics=metrics, engine="points"):
            want.append(
                [f"c{number}", row.class_name, row.metric, row.profile, row.unit, row.value, row.worst, row.status]
            )
    got = [[*list(r.values())[:5], *(float(r[k]) for k in ("value", "worst")), r["status"]] for r in rows]
    assert got == want
    shown = capsys.readouterr().out
    assert shown.count("mean ± SD over cases") == shown.count("mean over classes, which overlap") == 2


def test_the_number_of_workers_changes_no_byte(folders, tmp_path: Path) -> None:
    for workers in ("1", "2"):
        args = ["score", *map(str, folders), "--out", str(tmp_path / f"{workers}.csv"), "--workers", workers]
        assert main(args) == 0
    one, two = ((tmp_path / f"{w}.csv").read_bytes() for w in "12")
    assert one == two and one.count(b"\n") == 1 + 3 * 2 * 7


def test_classes_are_the_values_of_the_references(folders) -> None:
    scores = score_folders(*folders, workers=1)
    assert scores.labels == {"1": 1, "2": 2} and list(scores.rows) == ["c0", "c1", "c2"]
    assert {row.class_name for row in scores.rows["c0"]} == {"1", "2"}
    assert score_folders(*folders, ignore=2, workers=1).labels == {"1": 1}


def test_dropped_values_are_background(folders) -> None:
    scores = score_folders(*folders, {"disc": 1}, drop=[2, 99], workers=1, metrics=["dice"])
    for number in range(3):
        pred, ref = (np.where(v == 2, 0, v) for v in volumes(number))
        assert scores.rows[f"c{number}"] == evaluate(pred, ref, SPACING, {"disc": 1}, metrics=["dice"])
    with pytest.raises(BenchError, match="label 1 is both dropped and class 'disc'"):
        score_folders(*folders, {"disc": 1}, drop=[1], workers=1)


def test_the_four_empty_cases_by_hand(tmp_path: Path, capsys) -> None:
    """One row of 4 pixels of 2 mm x 3 mm: the diagonal is hypot(2, 12); a hit, and two pixels apart by 3 mm."""
    images = {"both": ([1, 1, 0, 0], [1, 0, 0, 0]), "none": ([0] * 4, [0] * 4), "pred": ([0] * 4, [0, 1, 0, 0]),
              "ref": ([0, 0, 1, 1], [0] * 4)}  # fmt: skip
    for case, (pred, ref) in images.items():
        write(tmp_path / f"pred/{case}.mha", np.uint8([pred]), (2.0, 3.0))
        write(tmp_path / f"ref/{case}.mha", np.uint8([ref]), (2.0, 3.0))
    out = tmp_path / "rows.csv"
    args = [
        "score",
        str(tmp_path / "pred"),
        str(tmp_path / "ref"),
        "--labels",
        "a=1",
        "--metrics",
        "dice,asd,precision",
    ]
    assert main([*args, "--out", str(out)]) == 0
    diagonal = repr(float(np.hypot(2.0, 12.0)))
    got = [line.split(",") for line in out.read_text().splitlines()]
    assert got[0] == list(COLUMNS)
    dice, asd, precision = (f"a,{m},voxel-max,{u}" for m, u in (("dice", "1"), ("asd", "mm"), ("precision", "1")))
    for case, rows in {
        "both": [f"{dice},{2 / 3!r},0.0,ok", f"{asd},1.5,{diagonal},ok", f"{precision},0.5,0.0,ok"],
        "none": [f"{dice},,0.0,both_empty", f"{asd},,{diagonal},both_empty", f"{precision},,0.0,both_empty"],
        "pred": [f"{dice},0.0,0.0,pred_empty", f"{asd},,{diagonal},pred_empty", f"{precision},,0.0,pred_empty"],
        "ref": [f"{dice},0.0,0.0,ref_empty", f"{asd},,{diagonal},ref_empty", f"{precision},0.0,0.0,ref_empty"],
    }.items():
        assert [",".join(r[1:]) for r in got if r[0] == case][:3] == rows
        tp, fp, fn, tn = (float(r[5]) for r in got if r[0] == case and r[2] in ("tp", "fp", "fn", "tn"))
        p, r = (np.array(v) == 1 for v in images[case])
        assert (tp, fp, fn, tn) == ((p & r).sum(), (p & ~r).sum(), (r & ~p).sum(), (~p & ~r).sum())
    shown = capsys.readouterr().out
    mean, sd = np.mean([200 / 3, 0, 0]), np.std([200 / 3, 0, 0], ddof=1)
    long = [1.5, float(diagonal), float(diagonal)]
    line = next(t for t in shown.splitlines() if t.startswith("a "))
    want = [
        "a",
        "3",
        f"{mean:.2f} ± {sd:.2f}",
        f"{np.mean(long):.2f} ± {np.std(long, ddof=1):.2f}",
        "25.00 ± 35.36 (n=2)",
    ]
    assert re.split(r"\s{2,}", line.strip()) == [*want, "1", "1", "1"]
    assert "mean over classes" not in shown and "voxel-max, distances in mm, 4 cases" in shown
    assert "one of the two empty counts DSC 0, Precision 0, distances the image diagonal" in shown
    assert "Precision is not applicable without a prediction" in shown


def test_means_over_classes_and_pooled_iou(folders) -> None:
    scores = score_folders(*folders, metrics=["dice", "miou"], workers=1)
    means = {(m.class_name, m.metric): m for m in summarise(scores)}
    values = {
        name: [next(r.value for r in scores.rows[c] if (r.class_name, r.metric) == (name, "dice")) for c in scores.rows]
        for name in "12"
    }
    for name in "12":
        assert means[name, "dice"].mean == pytest.approx(np.mean(values[name]), abs=1e-15)
        assert means[name, "dice"].sd == pytest.approx(np.std(values[name], ddof=1), abs=1e-15)
        masks = [[v == int(name) for v in volumes(k)] for k in range(3)]
        iou = sum((p & r).sum() for p, r in masks) / sum((p | r).sum() for p, r in masks)
        assert means[name, "miou"].mean == pytest.approx(iou, abs=1e-15) and means[name, "miou"].sd is None
    whole = means[None, "dice"]
    assert whole.mean == pytest.approx(np.mean([values["1"], values["2"]]), abs=1e-15)
    assert whole.sd == pytest.approx(np.std(np.mean([values["1"], values["2"]], axis=0), ddof=1), abs=1e-15)
    assert means[None, "miou"].mean == pytest.approx((means["1", "miou"].mean + means["2", "miou"].mean) / 2, abs=1e-15)
    assert not any(row.metric == "miou" for rows in scores.rows.values() for row in rows)


def test_profiles_with_numbers_of_their_own_keep_them(tmp_path: Path) -> None:
    write(tmp_path / "pred/a.png", np.uint8([[0, 1, 0]]), None)
    write(tmp_path / "ref/a.png", np.zeros((1, 3), np.uint8), None)
    scores = score_folders(
        tmp_path / "pred", tmp_path / "ref", {"x": 1}, metrics=["dice"], profile="transunet", workers=1
    )
    mean = summarise(scores)[0]
    assert (mean.mean, mean.n, mean.ref_empty) == (1.0, 1, 1)  # TransUNet's code: an empty reference is a full score
    assert "the numbers of transunet are what that code gives" in policy_line(scores)


@pytest.mark.parametrize("width", [50, 80, 120, 300])
def test_no_number_is_cut_in_a_narrow_terminal(folders, width: int) -> None:
    names = ["dice", "hd95", "asd", "assd", "nsd@2", "sensitivity", "volume_difference"]
    scores = score_folders(*folders, LABELS, metrics=names, workers=1)
    means = summarise(scores)
    console = Console(file=StringIO(), width=width)
    for table in _tables(scores, means, console):
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    words = text.split()
    for mean in means:
        scale = 100 if mean.unit == "1" else 1
        assert f"{mean.mean * scale:.2f}" in words and f"{mean.sd * scale:.2f}" in words


def test_json(folders, capsys) -> None:
    assert main(["score", *map(str, folders), "--json", "--metrics", "dice"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cases"] == ["c0", "c1", "c2"] and found["faults"] == {} and found["unit"] == "mm"
    assert [s["class"] for s in found["summary"]] == ["1", "2", None]
    assert len(found["rows"]) == 3 * 2 * 5 and tuple(found["rows"][0]) == COLUMNS
    first = score_folders(*folders, metrics=["dice"], workers=1).table()[0]
    assert found["rows"][0] == first


def test_pictures_are_measured_in_voxels(tmp_path: Path, capsys) -> None:
    pred, ref = (v[2] for v in volumes())
    write(tmp_path / "pred/a.png", pred, None)
    Image.fromarray(ref).save(made(tmp_path / "ref") / "a.tif", dpi=(72, 72))
    scores = score_folders(tmp_path / "pred", tmp_path / "ref", LABELS, workers=1)
    assert scores.rows["a"] == evaluate(pred, ref, None, LABELS, metrics=("dice", "hd95", "asd"))
    assert scores.unit == "voxel" and {r.unit for r in scores.rows["a"]} == {"1", "voxel", "voxels"}
    assert main(["score", str(tmp_path / "pred"), str(tmp_path / "ref"), "--spacing", "2,0.5"]) == 0
    assert "HD95 (mm)" in capsys.readouterr().out
    given = score_folders(tmp_path / "pred", tmp_path / "ref", LABELS, spacing=(2, 0.5), workers=1)
    assert given.rows["a"] == evaluate(pred, ref, (2.0, 0.5), LABELS, metrics=("dice", "hd95", "asd"))
    words = refused(capsys, tmp_path / "pred", tmp_path / "ref", "--spacing", "3,2,0.5")
    assert "has 3 numbers for 2 axes" in words


def test_a_palette_is_labels_and_not_colours(tmp_path: Path) -> None:
    labels = np.uint8([[0, 1, 2], [2, 2, 15]])
    picture = Image.fromarray(labels).convert("P")
    picture.putdata(labels.ravel().tolist())
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
    picture.save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png") == Header((2, 3), None, None, None)
    assert (read_labels(tmp_path / "a.png") == labels).all()


def test_one_slice_is_an_image_in_the_plane(tmp_path: Path) -> None:
    pred, ref = (v[2] for v in volumes())
    write(tmp_path / "pred/a.nii.gz", pred[None], (999.0, *SPACING[1:]))
    write(tmp_path / "ref/a.mha", ref, SPACING[1:])
    scores = score_folders(tmp_path / "pred", tmp_path / "ref", LABELS, workers=1)
    assert scores.rows["a"] == evaluate(pred, ref, SPACING[1:], LABELS, metrics=("dice", "hd95", "asd"))


MANIFEST = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: It is made by the tests.
layout: {{files: {{image: "{{case}}.mha", label: "{{case}}.mha"}}}}
modalities: [CT]
labels: {{disc: 10, ring: 20}}
drop: [30]
ignore: 255
intensity: {{zscore: volume}}
cases: [a, b]
splits: {{s: {{test: [a]}}}}
{more}
"""


@pytest.mark.parametrize(
    ("more", "labels", "spacing"),
    [
        ("", {"disc": 1, "ring": 2}, SPACING),
        ("spacing: unknown", {"disc": 1, "ring": 2}, None),
        ("regions: {all: [disc, ring], disc: [disc]}", {"all": (1, 2), "disc": (1,)}, SPACING),
    ],
)
def test_a_manifest_says_what_the_values_are(tmp_path: Path, more, labels, spacing) -> None:
    pred, ref = volumes()
    ref[0, :3], ref[5, :3] = 3, 4
    values = np.uint8([0, 10, 20, 30, 255])
    write(tmp_path / "pred/a.mha", values[pred])
    write(tmp_path / "ref/a.mha", values[ref])
    (tmp_path / "toy.yaml").write_text(MANIFEST.format(more=more))
    out = tmp_path / "rows.csv"
    folders = [str(tmp_path / "pred"), str(tmp_path / "ref")]
    assert main(["score", *folders, "--manifest", str(tmp_path / "toy.yaml"), "--out", str(out)]) == 0
    want = evaluate(pred, np.where(ref == 3, 0, ref), spacing, labels, metrics=("dice", "hd95", "asd"), ignore=4)
    assert [(r["class"], r["metric"], r["unit"], float(r["value"])) for r in read_rows(out)] == [
        (r.class_name, r.metric, r.unit, r.value) for r in want
    ]
