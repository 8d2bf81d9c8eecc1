"""What the reference says of one loss, gathered from its class."""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from harness.check import DECLARABLE
from harness.errors import BenchError
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.losses.calls import needs_of
from harness.losses.needs import FACTS, HEADS
from harness.reference.docstrings import REQUIRED, Docstring, parse
from harness.resolve import current_digest, load

# the two taxonomies: Azad et al., 2023, Figure 1, with a group of our own, and Jadon, 2020, and Ma et al., 2021
AZAD = ("pixel", "region", "boundary", "combination", "shape prior")
MA = ("distribution", "region", "boundary", "compound")

NEEDS = {
    "onehot": "the label as one channel of 0 and 1 for each class, 0 where ignored",
    "valid": "which voxels are not ignored",
    "present": "which classes have a voxel in the sample",
    "boundary": "valid voxels with a valid face neighbour of another class",
    "distance_in": "inside each class: exact Euclidean distance to the nearest voxel outside, 0 elsewhere",
    "distance_out": "outside each class: exact Euclidean distance to its nearest voxel, 0 elsewhere",
    "spacing": "size of a voxel along each axis, 1 where unknown",
    "label_weight": "a weight for each voxel of the label",
    "embedding": "the network's last feature map, before its classifier",
    "classify": "the network's classifier, from a feature map to logits",
    "attention": "attention maps of the network, each with sum 1",
    "shape_tokens": "shape tokens of the network",
    "shape_prior": "mean and log-variance of a latent shape",
    "token_maps": "a probability map for each class, made from the shape tokens",
    "aux": "auxiliary outputs of the network",
    "boundary_logits": "a head that the harness attaches to the embedding: boundary or not",
    "distance_logits": "a head that the harness attaches to the embedding: bins of the distance to the boundary",
    "projection": "a head that the harness attaches to the embedding: features to compare voxels by",
    "progress": "share of the training that is done, 0 to 1",
    "epoch": "number of the epoch",
    "epochs": "number of epochs",
    "generator": "random numbers of the stream `loss`",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of the constructor.

    Attributes:
        name: Its name.
        kind: Its type in words.
        default: As in Python; empty where there is none.
        filled: It is a fact of the data that the harness fills in.
        text: Of the docstring.
    """

    name: str
    kind: str
    default: str
    filled: bool
    text: str


@dataclass(frozen=True)
class Entry:
    """A loss of the table.

    Attributes:
        name: In the table.
        target: `module:Class`.
        doc: Its docstring.
        parameters: Of the constructor.
        needs: Name and whether it is required, the required first.
        taxonomy: Group of Azad et al.; group of Jadon and of Ma et al.
        version: Of its numbers.
        declares: Properties that it rightly lacks, with the reason.
        digest: Of its source.
        notes: What happens beside the call: preparation, state, learned parameters, heads.
    """

    name: str
    target: str
    doc: Docstring
    parameters: tuple[Parameter, ...]
    needs: tuple[tuple[str, bool], ...]
    taxonomy: tuple[str, str]
    version: int
    declares: dict[str, str]
    digest: str
    notes: tuple[str, ...]

    @property
    def module(self) -> str:
        """Dotted name of its module."""
        return self.target.partition(":")[0]

    @property
    def cls(self) -> str:
        """Name of its class."""
        return self.target.partition(":")[2]


def entry_of(name: str) -> Entry:
    """Gather what the reference says of a loss.

    Raises:
        BenchError: Something that every built-in loss has is missing; the sentence names all of it.
    """
    wrong = problems(name)
    target = LOSSES[name]
    if wrong:
        raise BenchError(f"{name} ({target}) cannot be documented: {'; '.join(wrong)}.")
    cls = load(target)
    loss = build_loss({"name": name, "class": target, "args": {}}, _facts())
    required, optional = needs_of(loss)
    return Entry(
        name=name,
        target=target,
        doc=parse(cls.__doc__),
        parameters=_parameters(cls),
        needs=tuple((n, n in required) for n in sorted(required) + sorted(optional)),
        taxonomy=cls.taxonomy,
        version=cls.version,
        declares=dict(getattr(cls, "declares", {})),
        digest=current_digest(target),
        notes=tuple(_notes(loss)),
    )


def problems(name: str) -> list[str]:
    """What the class of a loss lacks for its page, in parts of sentences; none where all is there."""
    cls = load(LOSSES[name])
    doc = parse(cls.__dict__.get("__doc__"))
    wrong = list(doc.problems)
    if not re.search(r"\b(19|20)\d\d\b|\(ours\b", " ".join([doc.summary, *doc.body])):
        wrong.append("the docstring names no source with its year, and does not say (ours)")
    wrong += [f"the docstring has no section {section}" for section in REQUIRED if section not in doc.sections]
    described, taken = set(doc.items("Args")), set(_signature(cls))
    wrong += [f"Args lacks {n}" for n in sorted(taken - described)]
    wrong += [f"Args describes {n}, which the constructor does not take" for n in sorted(described - taken)]
    groups = getattr(cls, "taxonomy", None)
    if not (isinstance(groups, tuple) and len(groups) == 2 and groups[0] in AZAD and groups[1] in MA):
        wrong.append(f"taxonomy is {groups!r}, expected a pair: one of {', '.join(AZAD)}, and one of {', '.join(MA)}")
    version = getattr(cls, "version", None)
    if type(version) is not int or version < 1:
        wrong.append(f"version is {version!r}, expected a whole number from 1")
    declares = getattr(cls, "declares", {})
    wrong += [f"declares names {k!r}, which is no property" for k in declares if k not in DECLARABLE]
    wrong += [f"declares gives no reason for {k!r}" for k, v in declares.items() if not str(v).strip()]
    return wrong


def _facts() -> dict[str, Any]:
    from harness.check.scenes import facts_of, label

    return facts_of(label(2))


def _signature(cls: type) -> dict[str, inspect.Parameter]:
    own = [p for p in inspect.signature(cls).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: p for p in own}


def _parameters(cls: type) -> tuple[Parameter, ...]:
    described = parse(cls.__doc__).items("Args")
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:
        hints = {}
    return tuple(
        Parameter(
            name=name,
            kind=_kind(hints.get(name, parameter.annotation)),
            default="" if parameter.default is inspect.Parameter.empty else _value(parameter.default),
            filled=name in FACTS,
            text=described[name],
        )
        for name, parameter in _signature(cls).items()
    )


def _kind(hint: Any) -> str:
    """`float`, `one of "batch", "sample"`, `numbers, one for each class`: short, for a table."""
    if typing.get_origin(hint) is typing.Literal:
        return " / ".join(f"`{value}`" for value in typing.get_args(hint))
    parts = [p for p in typing.get_args(hint) if p is not type(None)]
    if parts and type(None) in typing.get_args(hint):
        return _kind(parts[0]) if len(parts) == 1 else " or ".join(map(_kind, parts))
    if typing.get_origin(hint) is not None or not isinstance(hint, type):
        return f"`{re.sub(r'(?:[a-z_]+[.])+', '', str(hint))}`"
    return "list" if hint.__name__ == "Tensor" else hint.__name__


def _value(value: Any) -> str:
    if isinstance(value, float) and len(repr(value)) > 8:
        share = Fraction(value).limit_denominator(12)
        return f"{share.numerator}/{share.denominator}" if float(share) == value else f"{value:.6g}"
    return value if isinstance(value, str) else repr(value)


def _notes(loss: nn.Module) -> list[str]:
    found = []
    if any(callable(getattr(part, "prepare", None)) for part in loss.modules()):
        found.append("It is prepared once, from the training labels, before the training; the result is kept.")
    if callable(getattr(loss, "epoch_end", None)):
        found.append("It has a state that adapts at the end of each epoch and is saved with the training.")
    learned = [n for n, p in loss.named_parameters() if p.requires_grad]
    if learned:
        names = ", ".join(f"`{n}`" for n in learned)
        found.append(f"It has parameters that are learned with the network: {names}.")
    channels = getattr(loss, "channels", {})
    for head in sorted(set().union(*needs_of(loss)) & set(HEADS)):
        found.append(f"The head `{head}` has {channels.get(head, HEADS[head])} channels.")
    return found
