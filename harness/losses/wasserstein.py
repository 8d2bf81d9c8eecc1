"""Generalised Wasserstein Dice: an error costs what confusing its two classes costs. With builders of cost matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import BenchError
from harness.losses._common import IGNORE, Reduction, check_reduction, full_precision, ratio

Matrix = list[list[float]]


def uniform_matrix(num_classes: int) -> Matrix:
    """1 - I: every confusion costs the same.

    Raises:
        ValueError: There are fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, found {num_classes}")
    return [[float(row != column) for column in range(num_classes)] for row in range(num_classes)]


def tree_matrix(tree: Any) -> Matrix:
    """Distances between the leaves of a tree of labels, as a share of the largest.

    The distance of two leaves is the number of edges between them: through their lowest common ancestor. So
    `[0, [1, 2]]`, background beside an organ (1) with its tumour (2), gives M[1, 2] = 2/3 and M[0, 1] = M[0, 2] = 1.

    Args:
        tree: Nested lists, or nested mappings whose keys are names (`{background: 0, organ: {liver: 1, tumour: 2}}`);
            the leaves are the class numbers, each once.

    Raises:
        ValueError: The leaves are not 0, 1, ..., C - 1, or there are fewer than two.
    """
    paths = dict(_leaves(tree, ()))
    found = [leaf for leaf, _ in _leaves(tree, ())]
    if sorted(found) != list(range(len(found))) or len(found) < 2:
        raise ValueError(f"the leaves of a tree must be the classes 0, 1, ..., C - 1, each once, found {sorted(found)}")
    edges = [[_edges(paths[row], paths[column]) for column in range(len(found))] for row in range(len(found))]
    largest = max(max(row) for row in edges)
    return [[value / largest for value in row] for row in edges]


class GeneralizedWassersteinDice(nn.Module):
    """Generalised Wasserstein Dice loss (Fidon et al., 2017): AE / (2 TP + AE), errors weighed by a cost matrix M.

        Wₙ = Σ_c M[yₙ, c] pₙ,c;  AE = Σₙ Wₙ;  TP = Σ_{l ≠ 0} Σ_{yₙ = l} (M[l, 0] - Wₙ)
        L = 1 - (2 TP + s) / (2 TP + AE + s)

    W is the Wasserstein distance between the prediction and the label of a voxel when moving probability from class c
    to class l costs M[l, c]. Azad et al., 2023, eq. 9 prints M_cc, which is 0, so that its loss is constant; this is
    the formula of the paper. The authors' code writes 1 for M[l, 0], which scores a matrix with a class closer than 1
    to the background wrongly; here it is M[l, 0]. With M = 1 - I and two classes the loss is the Dice loss of the
    foreground.

    Args:
        matrix: M, "uniform" (1 - I), a nested list (C, C), or `{"tree": ...}` (see `tree_matrix`).
        weighting: "default", or "GDL" (Tilborghs et al., 2020): every class l, background too, weighs 1 / (n_l + 1),
            n_l its number of voxels, in TP and in AE. The background is no distance from itself, so its share of TP is
            M_max - W, M_max the largest cost from it (our reading; the code writes 1).
        reduction: Sums over the whole batch, or per sample (the authors').
        smooth: s.
        num_classes: C, a fact of the data set; only checked against M.

    Raises:
        ValueError: M is not a symmetric C x C matrix with a zero diagonal and entries in [0, 1], or a class is less
            than half as far from the background as from another class, so that 2 TP + AE could turn negative; or
            `weighting` or `reduction` is unknown.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar in [0, 1].

    Advantages:
        It knows that some confusions are worse than others: organ for its own tumour costs less than organ for
        background. It keeps the robustness of Dice to rare foregrounds.

    Disadvantages:
        Somebody has to choose M. Background voxels that are right add nothing, so an image that is all background
        costs about 1 with nearly no gradient unless its prediction is perfect.

    Use:
        Many classes with a hierarchy, as tumour parts or organs with substructures.

    Elsewhere:
        MONAI `GeneralizedWassersteinDiceLoss` and exacta's: per sample, M[l, 0] = 1, so they agree where every
        foreground class is at distance 1 from the background. MONAI rescales M to a largest entry of 1; here it is
        taken as it is (the loss is the same up to s). The authors' smoothing of 2e-16 vanishes in float32.
    """

    version = 1
    taxonomy = ("region", "region")
    table: Tensor | None

    def __init__(
        self,
        matrix: str | Sequence[Sequence[float]] | Mapping[str, Any] = "uniform",
        weighting: Literal["default", "GDL"] = "default",
        reduction: Reduction = "batch",
        smooth: float = 1e-5,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if weighting not in ("default", "GDL"):
            raise ValueError(f"weighting must be 'default' or 'GDL', found {weighting!r}")
        self.weighting, self.reduction, self.smooth = weighting, check_reduction(reduction), smooth
        table = None
        if isinstance(matrix, str):
            if matrix != "uniform":
                raise ValueError(f"matrix must be 'uniform', a nested list or {{'tree': ...}}, found {matrix!r}")
            table = None if num_classes is None else _table(uniform_matrix(num_classes))
        elif isinstance(matrix, Mapping):
            if set(matrix) != {"tree"}:
                raise ValueError(f"matrix must hold 'tree' and nothing else, found {', '.join(map(str, matrix))}")
            table = _table(tree_matrix(matrix["tree"]))
        else:
            table = _table(_checked(matrix))
        if table is not None and num_classes is not None and len(table) != num_classes:
            raise ValueError(f"the matrix is for {len(table)} classes, the data set has {num_classes}")
        if table is not None:
            _positive(table[:, :-1])
        # an argument, not a state: no place in the checkpoint
        self.register_buffer("table", table, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Raises:
            BenchError: The matrix is not for the number of classes of the logits.
        """
        scores, labels = full_precision(logits).flatten(2), target.flatten(1)
        classes = scores.shape[1]
        table = self.table if self.table is not None else _table(uniform_matrix(classes)).to(scores.device)
        if len(table) != classes:
            raise BenchError(f"the matrix is for {len(table)} classes, the logits have {classes}.")
        table = table.to(scores.dtype)
        # the last column of the table is 0: ignored voxels cost nothing
        rows = torch.where(labels == IGNORE, classes, labels)
        costs = torch.empty_like(scores, requires_grad=False)
        with torch.no_grad():
            for cost, row in zip(costs, rows, strict=True):
                torch.index_select(table, 1, row, out=cost)  # three times as fast as `table[:, row]`
        errors = (scores.softmax(1) * costs).sum(1)
        if self.weighting == "default":
            # Σ M[yₙ, 0]: 0 for the background and for ignored voxels
            true_positive = costs[:, 0].sum(1) - (errors * (rows > 0)).sum(1)
            all_errors = errors.sum(1)
        else:
            weights, counts = self._inverse_sizes(rows, table)
            weight = torch.stack([torch.index_select(w, 0, row) for w, row in zip(weights, rows, strict=True)])
            all_errors = (errors * weight).sum(1)
            reference = torch.cat([table[0].amax()[None], table[0, 1:]])
            true_positive = (weights * counts * reference).sum(1) - all_errors
        if self.reduction == "batch":
            true_positive, all_errors = true_positive.sum(), all_errors.sum()
        return ratio(all_errors, 2 * true_positive + all_errors + self.smooth).mean()

    def _inverse_sizes(self, rows: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """1 / (n + 1) of each class, n over the sample or the batch, and the sizes in each sample, (B, C + 1)."""
        small = rows.to(torch.uint8)  # an eighth of the memory to read per class
        counts = torch.stack([(small == c).sum(1) for c in range(len(table))], 1).to(table.dtype)
        sizes = counts.sum(0, keepdim=True).expand_as(counts) if self.reduction == "batch" else counts
        return nn.functional.pad(1 / (sizes + 1), (0, 1)), nn.functional.pad(counts, (0, 1))


def _leaves(tree: Any, path: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Leaves with the branches taken from the root to them."""
    if isinstance(tree, int) and not isinstance(tree, bool):
        yield tree, path
        return
    if not isinstance(tree, Mapping | list | tuple):
        raise ValueError(f"a tree is nested lists or mappings of class numbers, found {tree!r}")
    for i, branch in enumerate(tree.values() if isinstance(tree, Mapping) else tree):
        yield from _leaves(branch, (*path, i))


def _edges(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    return len(a) + len(b) - 2 * common


def _checked(matrix: Sequence[Sequence[float]]) -> Matrix:
    rows = [[float(value) for value in row] for row in matrix]
    size = len(rows)
    if size < 2 or any(len(row) != size for row in rows):
        raise ValueError(f"matrix must be C x C with C of at least 2, found rows of {[len(row) for row in rows]}")
    for i, row in enumerate(rows):
        if row[i] != 0:
            raise ValueError(f"matrix must be 0 on the diagonal, found {row[i]} for class {i}")
        for j, value in enumerate(row):
            if not 0 <= value <= 1:
                raise ValueError(f"matrix must lie in [0, 1], found {value} at ({i}, {j})")
            if value != rows[j][i]:
                raise ValueError(
                    f"matrix must be symmetric, found {value} at ({i}, {j}) and {rows[j][i]} at ({j}, {i})"
                )
    return rows


def _positive(matrix: Tensor) -> None:
    short = matrix[1:, 0] * 2 < matrix[1:].amax(1)
    if bool(short.any()):
        number = 1 + int(short.int().argmax())
        raise ValueError(
            f"class {number} is less than half as far from the background ({matrix[number, 0]:g}) as from another "
            f"class ({matrix[number].max():g}): the loss could turn negative"
        )


def _table(matrix: Matrix) -> Tensor:
    """M as (C, C + 1), for a column per label, the last one, of ignored voxels, 0. M is symmetric."""
    return nn.functional.pad(torch.tensor(matrix, dtype=torch.float64), (0, 1))
