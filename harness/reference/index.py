"""The pages on all losses: overview by both taxonomies, results of the check, agreement with references."""

from __future__ import annotations

from collections.abc import Sequence

from harness.reference.costs import OURS
from harness.reference.docstrings import plain
from harness.reference.entries import AZAD, MA, Entry
from harness.reference.pages import HEADING, OUTCOMES, PROPERTY_TEXT, Facts, table, times, verdict

AZAD_TEXT = {
    "pixel": "A mean over voxels of something that is computed voxel by voxel.",
    "region": "From overlaps and sizes of whole regions.",
    "boundary": "From distances to a contour, or from the contour itself.",
    "combination": "Weighted sums and other compounds.",
    "shape prior": "Not a group of Azad et al.: what is known of shapes beside the label, such as sizes, neighbours, "
    "attention and latent shapes.",
}


def overview(entries: Sequence[Entry], facts: Facts) -> str:
    """`README.md`."""
    parts = [
        HEADING,
        "# The losses",
        f"{len(entries)} losses, each a class of `harness.losses` and a name in a suite. Logits in, softmax inside; "
        "ignored voxels have neither value nor gradient; 2D and 3D; any number of classes. Each has a page with its "
        "formula, source, arguments, behaviour, use, check and cost, and with errors of other implementations.",
        "[Results of the check](checks.md). [Agreement with independent references](agreement.md).",
        "![The losses as a tree, by groups of Azad et al. and, in the mark before each name, of Jadon and of Ma et al.]"
        "(taxonomy.svg)",
        "Groups of Azad et al., 2023 (Figure 1), and one of our own. The mark before a name is the group of Jadon, "
        "2020, and of Ma et al., 2021; both are listed below. In the tables, `need`? is used where it is at "
        "hand, and time is that of forward and backward relative to one pass over the logits.",
    ]
    for group in AZAD:
        own = [e for e in entries if e.taxonomy[0] == group]
        if own:
            parts += [f"## {group[0].upper()}{group[1:]}", AZAD_TEXT[group], _losses(own, facts)]
    parts += [
        "## By Jadon and Ma",
        table(
            ("group", "losses"),
            [(group, ", ".join(_link(e) for e in entries if e.taxonomy[1] == group)) for group in MA],
        ),
        "## One mismatch, three weightings",
        "![Two overlapping shapes, the truth G and a prediction S; where they differ the shade is the weight in Dice, "
        "boundary and Hausdorff losses](mismatch.svg)",
        "Ma et al., 2021, read three families as one: each counts the region where the truth G and the prediction S "
        "differ, with another weight. Dice counts every voxel of it alike, relative to the sizes of both: "
        "(|S| + |G| - 2 |S ∩ G|) / (|S| + |G|). The boundary loss weighs it with the distance to the boundary of G: "
        "far errors cost more and the gradient does not depend on the size of the object. Hausdorff losses take the "
        "distances to both boundaries; drawn are their squares, added.",
    ]
    return "\n\n".join(parts) + "\n"


def checks(entries: Sequence[Entry], facts: Facts) -> str:
    """`checks.md`: all losses and properties, and why something is declared."""
    names = list(PROPERTY_TEXT)
    rows, declared = [], []
    for entry in entries:
        lines = {line["name"]: line for line in facts.measured.get(entry.name, {}).get("check", ())}
        rows.append((_link(entry), *(OUTCOMES[lines[n]["outcome"]] if n in lines else "" for n in names)))
        declared += [
            (_link(entry), f"`{name}`", plain(line["reason"]), plain(line["text"]))
            for name, line in lines.items()
            if line["outcome"] == "declared"
        ]
    parts = [
        HEADING,
        "# What `bench check` finds",
        "Every property that a loss should have, tested with its default arguments: ✓ it has it; D it lacks it, says "
        "so and why, and the test shows that it does; – does not apply; ✗ fails. `bench check NAME` shows the numbers.",
        "\n".join(f"{i}. `{name}`: {plain(text)}" for i, (name, text) in enumerate(PROPERTY_TEXT.items(), 1)),
        table(("loss", *(str(i) for i in range(1, len(names) + 1))), rows),
    ]
    if declared:
        parts += [
            "## Declared",
            "What a loss rightly lacks. Ignored voxels, finite values and gradients, large logits and half precision "
            "cannot be declared.",
            table(("loss", "property", "reason", "seen"), declared),
        ]
    return "\n\n".join(parts) + "\n"


def agreement(entries: Sequence[Entry], facts: Facts) -> str:
    """`agreement.md`: all losses and references."""
    rows = [
        (_link(entry), plain(oracle), f"{error:.1e}")
        for entry in entries
        for oracle, error in facts.agreement.get(entry.name, ())
    ]
    none = [_link(entry) for entry in entries if not facts.agreement.get(entry.name)]
    parts = [
        HEADING,
        "# Agreement with independent references",
        "Largest relative error in float64 over the cases of the tests: another library's loss, or a second "
        "implementation in numpy by loops over voxels, written from the formula. Where the reference has another "
        "convention the test maps it. The tests demand 1e-5.",
        table(("loss", "reference", "error"), rows),
    ]
    if none:
        parts.append(f"Not collected: {', '.join(none)}.")
    return "\n\n".join(parts) + "\n"


def _losses(entries: Sequence[Entry], facts: Facts) -> str:
    rows = []
    for entry in entries:
        found = facts.measured.get(entry.name)
        needs = ", ".join(f"`{name}`" + ("" if required else "?") for name, required in entry.needs)
        result = verdict(found["check"]) if found else "–"
        cost = next((c.of_time for c in facts.costs.get(entry.name, ()) if c.by == OURS), None)
        rows.append((_link(entry), plain(entry.doc.summary), entry.taxonomy[1], needs, times(cost), result))
    return table(("loss", "what it is", "Jadon, Ma", "needs", "time", "check"), rows)


def _link(entry: Entry) -> str:
    return f"[{plain(entry.name)}]({entry.name}.md)"
