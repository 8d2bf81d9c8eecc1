"""`bench run` from end to end: paired by construction, the same bit for bit, resumable after kill -9."""

import os
import subprocess
import time
from pathlib import Path

import pandas as pd

from tests.conftest import started, wait_for


def _same(a: dict[str, dict], b: dict[str, dict]) -> None:
    assert a.keys() == b.keys() and a
    for label in a:
        assert a[label]["status"] == b[label]["status"] == "ok"
        assert a[label]["weights"] == b[label]["weights"]
        assert a[label]["fingerprints"] == b[label]["fingerprints"]
        for name in ("cases.csv", "../curve.csv"):
            assert (a[label]["folder"] / name).read_bytes() == (b[label]["folder"] / name).read_bytes()


def test_a_run_is_paired_repeatable_and_not_repeated(toy) -> None:
    suite = toy.suite("seeds: 1", "seeds: 2")
    done = toy.bench("run", suite, "--workers", "2")
    assert done.returncode == 0, done.stderr
    records = toy.records()
    assert sorted(records) == ["ce", "ce#1", "dice", "dice#1"]

    # equal initial weights and first batches for every loss of a seed, other ones for another seed
    assert records["dice"]["fingerprints"] == records["ce"]["fingerprints"] != records["dice#1"]["fingerprints"]
    assert records["dice"]["weights"] != records["ce"]["weights"]
    assert records["dice"]["environment"]["threads"] == 1

    cases = pd.read_csv(records["dice"]["folder"] / "cases.csv")
    assert set(cases["metric"]) == {"dice", "hd95", "asd", "tp", "fp", "fn", "tn"}
    assert len(cases) == 2 * 2 * 7 and set(cases["case"]) == {"c4", "c5"}
    assert set(cases.loc[cases.metric == "hd95", "unit"]) == {"mm"}
    whole = cases[(cases.case == "c4") & (cases["class"] == "disc") & cases.metric.isin(["tp", "fp", "fn", "tn"])]
    assert whole["value"].sum() == 4 * 30 * 28  # scored on the whole volume's own grid, not on the padded one
    curve = pd.read_csv(records["dice"]["folder"].parent / "curve.csv")
    assert list(curve["epoch"]) == [0, 1] and list(curve["step"]) == [4, 8]
    assert (toy.folder / "reports/toy/index.html").is_file()

    again = toy.bench("run", suite)
    assert again.returncode == 0 and "4 done, 0 to run" in again.stdout
    assert toy.records()["dice"] == records["dice"]

    toy.bench("run", suite, out="other")
    _same(records, toy.records("other"))


def test_patches_in_three_dimensions_and_a_loss_with_a_distance_map(toy) -> None:
    (toy.folder / "mine.py").write_text(
        "from torch import nn\nclass Mine(nn.Module):\n"
        "    def forward(self, logits, target, *, distance_in, distance_out, spacing):\n"
        "        assert logits.ndim == 5 and spacing.shape == (len(logits), 3)\n"
        "        return (logits.softmax(1) * (distance_out - distance_in)).mean()\n"
    )
    suite = toy.suite("slices: {size: [32, 32]}", "patches: {size: [4, 16, 16], foreground: 0.5}")
    text = suite.read_text().replace("depth: 3", "depth: 2")
    suite.write_text(text.replace("[dice, ce]", "['mine.py:Mine', monai.losses.DiceCELoss]"))
    done = toy.bench("run", suite)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = pd.read_csv(toy.records()["Mine"]["folder"] / "cases.csv")
    whole = cases[(cases.case == "c4") & (cases["class"] == "disc") & cases.metric.isin(["tp", "fp", "fn", "tn"])]
    assert whole["value"].sum() == 4 * 30 * 28


def test_after_kill_9_of_everything_the_same_command_ends_with_the_same_bits(toy) -> None:
    suite = toy.suite("epochs: 2, steps: 4", "epochs: 10, steps: 30")
    undisturbed = toy.bench("run", suite, "--workers", "2", out="undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr

    command = [*toy.command("run", suite, "--workers", "2"), "--out", str(toy.folder / "runs")]
    environment = os.environ | {"BENCH_CHECKPOINT_SECONDS": "0.05"}
    with started(command, env=environment, stdout=subprocess.DEVNULL):
        wait_for(lambda: list((toy.folder / "runs").glob("*/checkpoint.pt")), "a checkpoint")
        time.sleep(0.3)
    left = list((toy.folder / "runs").glob("*/checkpoint.pt"))
    assert left and len(toy.records()) < 2, "the kill came too late to prove anything"

    finished = toy.bench("run", suite, "--workers", "2")
    assert finished.returncode == 0, finished.stderr
    _same(toy.records("undisturbed"), toy.records())
    assert not list((toy.folder / "runs").glob("*/checkpoint.pt"))


def test_ctrl_c_keeps_a_checkpoint_and_exits_with_130(toy) -> None:
    suite = toy.suite("epochs: 2, steps: 4", "epochs: 50, steps: 100")
    toy.interrupted("run", suite, "--workers", "1")
    assert list((toy.folder / "runs").glob("*/checkpoint.pt"))
    assert [r["status"] for r in toy.records().values()] == ["interrupted"]


def test_an_orphaned_worker_stops(toy) -> None:
    suite = toy.suite("epochs: 2, steps: 4", "epochs: 500, steps: 100")
    command = [*toy.command("run", suite, "--workers", "1"), "--out", str(toy.folder / "runs")]
    with started(command, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: list((toy.folder / "runs").glob("*/log.txt")), "a log")
        process.kill()  # the parent alone
        process.wait()
        wait_for(lambda: not _group(process.pid), "the end of the workers", 60)


def _group(leader: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
