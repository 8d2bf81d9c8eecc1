"""What a loss may ask for, by the names of its keyword-only parameters. No torch here: plans read it."""

from __future__ import annotations

from collections.abc import Iterable

from harness.errors import BenchError
from harness.yamlfile import nearest

# Derived from the label once per batch (harness.losses.targets).
LABEL_NEEDS = frozenset({"onehot", "valid", "present", "distance_in", "distance_out", "boundary"})
# Of the sample.
SAMPLE_NEEDS = frozenset({"spacing", "label_weight"})
# Heads that the harness attaches to the embedding, with their channels unless the loss states others in `channels`.
HEADS = {"boundary_logits": 2, "distance_logits": 10, "projection": 32}
# Fields of the model's Output; a model that does not provide one makes the cell a planned skip.
MODEL_NEEDS = frozenset({"embedding", "classify", "aux", "attention", "shape_tokens", "shape_prior", "token_maps"})
# 0-dim tensors on the device.
PROGRESS_NEEDS = frozenset({"progress", "epoch", "epochs"})
# A torch.Generator of the stream `loss`.
CHANCE_NEEDS = frozenset({"generator"})
NEEDS = LABEL_NEEDS | SAMPLE_NEEDS | MODEL_NEEDS | frozenset(HEADS) | PROGRESS_NEEDS | CHANCE_NEEDS

# Facts of the data set: filled into parameters of the constructor that the user did not give.
FACTS = ("num_classes", "spatial_dims", "ignore_index", "class_counts", "adjacency", "class_surface")


def check_needs(names: Iterable[str]) -> frozenset[str]:
    """Return the names as a set.

    Raises:
        BenchError: A name is not in the list; the sentence prints the list.
    """
    found = frozenset(names)
    unknown = sorted(found - NEEDS)
    if unknown:
        known = sorted(NEEDS)
        near = nearest(unknown[0], known)
        raise BenchError(f"the loss asks for {unknown[0]!r}, which nobody supplies{near}; known: {', '.join(known)}.")
    return found
