"""`bench new loss NAME`: a file with a loss to start from, which passes `bench check` as it is."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import BenchError
from harness.losses import LOSSES
from harness.printing import print_json

TEMPLATE = '''\
"""A loss of your own: `bench check {file}:{cls}` says whether it does what a loss should."""

from torch import Tensor, nn


class {cls}(nn.Module):
    """Mean over voxels of Σ_c |t_c - p_c|^power, with the one-hot label t and the probabilities p.

    Source: with power = 2 the score of Brier, 1950. Put your formula, paper and equation here.
    """

    version = 1  # raise it when the same arguments would give other numbers

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, logits: Tensor, target: Tensor, *, onehot: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, C, *S), target (B, *S) with 255 ignored → scalar; what stands after the * is supplied."""
        error = (onehot - logits.softmax(1)).abs().pow(self.power).sum(1)
        return (error * valid).sum() / valid.sum().clamp_min(1)
'''

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NEXT_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])")  # my|Loss, HD|Loss, U2|Net, Like2D
_IN_TEMPLATE = frozenset({"Tensor"})
LONGEST = 40


@dataclass(frozen=True)
class NewLoss:
    """A loss that was written.

    Attributes:
        file: Its file.
        cls: Its class.
        loss: What names it in a suite and on the command line, from the folder of the file.
    """

    file: str
    cls: str
    loss: str


def new_loss(name: str, folder: Path) -> NewLoss:
    """Write a loss to start from.

    Args:
        name: `my_loss` or `MyLoss`: both give the class MyLoss in my_loss.py.
        folder: Where the file is written. A file that is there already is never replaced.

    Raises:
        BenchError: The name is not one for a Python file and class, or is taken; the file exists or cannot be written.
    """
    stem, cls = names_of(name)
    path = folder / f"{stem}.py"
    taken = BenchError(f"{path} is there already and stays as it is; take another name or move that file away.")
    if path.exists() or path.is_symlink():
        raise taken
    if stem in LOSSES:
        raise BenchError(f"{name!r}: {stem} is a loss of `bench list losses`; take another name, to tell them apart.")
    if _importable(stem):
        raise BenchError(f"{name!r}: {stem}.py would hide the installed Python module {stem!r}; take another name.")
    try:
        with path.open("x", encoding="utf-8") as file:  # x: not even one that was made this moment is replaced
            file.write(TEMPLATE.format(cls=cls, file=path.name))
    except FileExistsError:
        raise taken from None
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror or error}.") from None
    return NewLoss(str(path), cls, f"{path.name}:{cls}")


def names_of(name: str) -> tuple[str, str]:
    """Names of file (without .py) and class: `my_loss`, `MyLoss` and `My_Loss` are (my_loss, MyLoss).

    Raises:
        BenchError: None can be made of it.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        bare = name.removesuffix(".py")
        hint = f"; for this file: bench new loss {bare}" if name != bare and _NAME.fullmatch(bare) else ""
        raise BenchError(
            f"{name!r} is not a name for a loss: expected a letter, then letters, digits and _, at most {LONGEST} in "
            f"all, such as my_loss{hint}."
        )
    stem = _NEXT_WORD.sub("_", name).lower()
    cls = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    for made in (stem, cls):
        if keyword.iskeyword(made) or made in _IN_TEMPLATE:
            raise BenchError(f"{name!r} would give the name {made!r}, which means something else; take another name.")
    return stem, cls


def new_loss_command(name: str, as_json: bool) -> int:
    """Write a loss into the working directory and say what to do next."""
    made = new_loss(name, Path())
    if as_json:
        print_json(asdict(made))
        return 0
    print(f"{made.file} holds the class {made.cls}: a loss that works, for you to change. Then:")
    print(f"  bench check {made.loss}")
    print(f"and name it in a suite:  losses: [dice_ce, '{made.loss}']")
    return 0


def _importable(module: str) -> bool:
    """Whether `import module` would find something now; a folder of that name alone does not count."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None
