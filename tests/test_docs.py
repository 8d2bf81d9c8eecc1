"""What the README and the docs show is executed."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from harness.check import check_loss
from harness.cli import main
from harness.losses.build import build_loss
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.targets import derive
from harness.suite import load_suite

ROOT = Path(__file__).parent.parent


def _blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "my_loss.py").write_text(_blocks("README.md", "python")[0])
    (tmp_path / "mine.yaml").write_text(_blocks("README.md", "yaml")[0])
    return tmp_path / "mine.yaml"


def test_the_suite_of_the_readme_is_valid(suite: Path) -> None:
    labels = list(dict.fromkeys(c.loss_label for c in load_suite(suite).cells))
    assert labels == ["dice_ce", "focal(gamma=1)", "focal(gamma=2)", "focal(gamma=3)", "CrossEntropyLoss", "MyLoss"]
    assert all(c.skip is None for c in load_suite(suite).cells)


def test_the_mistake_of_the_readme_reads_as_it_says(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.search(r"``mine\.yaml:(.*?)``", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown is not None
    suite.write_text(suite.read_text().replace("gamma:", "gama:"))
    assert main(["plan", str(suite)]) == 2
    assert f"mine.yaml:{shown.group(1)}" in capsys.readouterr().err


def test_the_loss_of_the_readme_is_lowest_at_the_truth(suite: Path) -> None:
    cell = load_suite(suite).cells[-1]
    loss = build_loss(cell.loss, {})
    assert needs_of(loss) == ({"onehot", "valid", "distance_in", "distance_out"}, set())
    target = torch.zeros(1, 12, 12, dtype=torch.int64)
    target[:, 3:8, 4:9] = 1
    maps = derive(needs_of(loss)[0], target, num_classes=2, spacing=torch.ones(1, 2))
    values = []
    for labels in (target, target.roll(2, 2), 1 - target):
        logits = torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float() * 20
        values.append(float(evaluate_loss(loss, logits.requires_grad_(), target, maps)["loss"].detach()))
    assert values[0] < values[1] < values[2]


def test_the_loss_of_the_readme_passes_the_check(suite: Path) -> None:
    certificate = check_loss(load_suite(suite).cells[-1].loss)
    assert certificate.passed, certificate.failed


def test_the_use_as_a_library_runs() -> None:
    names: dict[str, object] = {}
    exec(_blocks("README.md", "python")[1], names)
    assert 0 < float(names["loss"]) < 1  # type: ignore[arg-type]


def test_the_losses_of_the_suite_reference_are_valid(tmp_path: Path) -> None:
    (tmp_path / "my_loss.py").write_text(_blocks("README.md", "python")[0])
    listed = yaml.safe_load(_blocks("docs/suites.md", "yaml")[0])["losses"]
    text = yaml.safe_load(_blocks("README.md", "yaml")[0]) | {"losses": listed, "rank": {"by": ["dice"]}}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(text))
    labels = list(dict.fromkeys(c.loss_label for c in load_suite(tmp_path / "all.yaml").cells))
    assert "linear(1→0)·dice_ce + linear(0→1)·MyLoss" in labels and "jaccard + ce + focal" in labels


@pytest.mark.parametrize("path", sorted((ROOT / "suites").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("quick", [False, True])
def test_shipped_suites_are_valid(path: Path, quick: bool, found_data: Path) -> None:
    cells = load_suite(path, quick, found_data).cells
    # what its U-Net does not give: attention maps, a latent of shape, maps of tokens
    planned = ["attention", "kl_shape_prior", "shape_alignment"] if path.stem == "catalogue" else []
    assert cells and [c.loss_label for c in cells if c.skip] == planned


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
