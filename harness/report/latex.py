"""Tables as LaTeX with booktabs: pure ASCII, every special character escaped, so that any name compiles with pdflatex.

booktabs is all they need, in one column or two; with xcolor the marks have their colours, with graphicx a table fits
the width of the text. The best number is bold and blue, the second underlined and red: the marks survive print without
colour. A character that pdflatex has no glyph for in its standard fonts is written as its code point, `[U+4E2D]`, and
never dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from harness.report.palette import slug
from harness.report.view import Block, Column, Entry, Row, TableView

LONG = 40
"""Rows that do not fit on a page with their headings: a table of so many comes in parts."""

_HEAD = r"""% In the preamble: \usepackage{booktabs}. For the colours of the marks also \usepackage{xcolor}; to make
% tables smaller that are wider than the text also \usepackage{graphicx}; in a LaTeX before 2020 \usepackage{textcomp}.
\providecommand{\textcolor}[2]{#2}
\providecommand{\tofit}[1]{\ifdefined\resizebox
  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}\else#1\fi}
"""
_PLAIN = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\texttt{\char34}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    # behind the end of a row these two would be read as its arguments
    "[": "{[}", "]": "{]}", "*": "{*}",
    "\u00a0": "~", "\u202f": r"\,", "\u2009": r"\,", "\u00ad": r"\-",
    "\u2013": "--{}", "\u2014": "---{}", "\u2018": "`{}", "\u2019": "'{}", "\u201c": "``{}", "\u201d": "''{}",
    "\u2026": r"\ldots{}", "\u20ac": r"\texteuro{}", "\u00a7": r"\S{}", "\u00b6": r"\P{}", "\u00a9": r"\copyright{}",
    "\u00df": r"\ss{}", "\u00f8": r"\o{}", "\u00d8": r"\O{}", "\u00e6": r"\ae{}", "\u00c6": r"\AE{}",
    "\u0153": r"\oe{}", "\u0152": r"\OE{}", "\u0142": r"\l{}", "\u0141": r"\L{}", "\u0131": r"\i{}",
    "\u00e5": r"\aa{}", "\u00c5": r"\AA{}",
}  # fmt: skip
_MATH = {
    "\u00d7": r"\times", "\u00b1": r"\pm", "\u2212": "-", "\u00b7": r"\cdot", "\u2192": r"\to", "\u2190": r"\leftarrow",
    "\u2191": r"\uparrow", "\u2193": r"\downarrow", "\u2264": r"\leq", "\u2265": r"\geq", "\u2260": r"\neq",
    "\u2248": r"\approx", "\u221e": r"\infty", "\u00b0": r"^{\circ}", "\u00b2": "^{2}", "\u00b3": "^{3}",
    "\u00b9": "^{1}", "\u2070": "^{0}", "\u2211": r"\sum", "\u220f": r"\prod", "\u221a": r"\surd", "\u2208": r"\in",
    "\u2229": r"\cap", "\u222a": r"\cup", "\u2216": r"\setminus", "\u2202": r"\partial", "\u00b5": r"\mu",
}  # fmt: skip
_GREEK = {
    0x3B1: "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi",
    0x3C0: "pi rho",
    0x3C3: "sigma tau upsilon phi chi psi omega",
}
_UPPER = ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega")
# Combining marks that have an accent in the standard encoding; an ogonek has none there.
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0331": "b",
}  # fmt: skip


def _symbols() -> dict[str, str]:
    small = {chr(at + i): f"\\{n}" for at, names in _GREEK.items() for i, n in enumerate(names.split())}
    large = {unicodedata.lookup(f"GREEK CAPITAL LETTER {n.replace('Lambda', 'LAMDA').upper()}"): n for n in _UPPER}
    math = _MATH | small | {k: f"\\{n}" for k, n in large.items()}
    return _PLAIN | {k: rf"\ensuremath{{{v}}}" for k, v in math.items()}


_SYMBOLS = _symbols()


def escape(text: str) -> str:
    """Any text as LaTeX that prints it: ASCII only, no character with a meaning of its own, on one line."""
    chars = unicodedata.normalize("NFC", re.sub(r"\s*[\r\n]\s*", " ", text))
    dashes = "-\u2013\u2014"  # two hyphens in a row would join to a dash
    return "".join(
        "-{}" if c == "-" and n in dashes else _one(c) for c, n in zip(chars, (chars + " ")[1:], strict=True)
    )


def _one(char: str) -> str:
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    if " " <= char <= "~":
        return char
    parts = unicodedata.normalize("NFD", char)
    if len(parts) == 2 and parts[1] in _ACCENTS and parts[0].isascii() and parts[0].isalpha():
        base, accent = parts[0], _ACCENTS[parts[1]]
        letter = {"i": r"\i", "j": r"\j"}.get(base, base)  # the dot gives way to the accent
        return f"\\{accent}{{{letter if accent not in 'cdb' else base}}}"
    return f"{{[}}U+{ord(char):04X}{{]}}"


def render(views: Sequence[TableView]) -> str:
    """The tables as one file to input, or to copy from: what it needs stands in its first lines."""
    taken: set[str] = set()
    parts = [_table(part, taken) for v in views if v.columns for part in _parts(v)]
    return _HEAD + "".join("\n" + p for p in parts)


def _parts(view: TableView) -> list[TableView]:
    """The table in parts that fit on a page; each repeats the heading of the block it begins in."""
    if view.height < LONG:
        return [view]
    pages: list[list[Block]] = [[]]
    left = LONG - 1
    for block in view.blocks:
        rows, heading = list(block.rows), bool(block.name)
        while rows:
            if left < 1 + heading:
                pages.append([])
                left = LONG - 1
            now, rows = rows[: left - heading], rows[left - heading :]
            pages[-1].append(Block(block.name, tuple(now)))
            left -= len(now) + heading
    titles = [f"{view.title} ({i} of {len(pages)})" for i in range(1, len(pages) + 1)]
    parts = [replace(view, title=t, blocks=tuple(b)) for t, b in zip(titles, pages, strict=True)]
    return [*(replace(p, notes=()) for p in parts[:-1]), parts[-1]]


def _table(view: TableView, taken: set[str]) -> str:
    columns = ("l" if view.stub else "") + "".join("l" if c.words else "r" for c in view.columns)
    caption = f"\\caption{{{escape(view.title)}}}\n\\label{{tab:{slug(f'{view.layout}-{view.title}', taken)}}}"
    notes = escape(" ".join(view.notes))
    below = ["\\par\\smallskip", f"\\begin{{minipage}}{{\\linewidth}}\\footnotesize {notes}\\end{{minipage}}"]
    below = below if notes else []
    top, body = _top(view), _body(view)
    lines = [
        "\\begin{table}[tbp]", "\\centering\\small", caption, f"\\tofit{{\\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        "\\toprule", *top, "\\midrule", *body, "\\bottomrule", "\\end{tabular}}", *below, "\\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _top(view: TableView) -> list[str]:
    cells, rules = [], []
    at = 2 if view.stub else 1
    for head in view.heads:
        arrow = {None: "", True: r" \ensuremath{\downarrow}", False: r" \ensuremath{\uparrow}"}[head.lower]
        profile = f" {escape(f'({head.profile})')}" if head.profile else ""
        cells.append(f"\\multicolumn{{{head.span}}}{{c}}{{{escape(head.name)}{profile}{arrow}}}")
        rules.append(f"\\cmidrule(lr){{{at}-{at + head.span - 1}}}")
        at += head.span
    stub = [""] if view.stub else []
    names = ([escape(view.stub)] if view.stub else []) + [escape(c.name) for c in view.columns]
    return [_line([*stub, *cells]), " ".join(rules), _line(names)]


def _body(view: TableView) -> list[str]:
    lines: list[str] = []
    for i, block in enumerate(view.blocks):
        lines += ["\\midrule"] if i else []
        lines += _block(block, view)
    return lines


def _block(block: Block, view: TableView) -> list[str]:
    head = [_line([f"\\multicolumn{{{view.width}}}{{@{{}}l}}{{\\emph{{{escape(block.name)}}}}}"])] if block.name else []
    return head + [_line(_cells(row, view)) for row in block.rows]


def _cells(row: Row, view: TableView) -> list[str]:
    stub = [escape(row.name) + _remark(row.remark)] if view.stub else []
    return stub + [_entry(c, e) for c, e in zip(view.columns, row.entries, strict=True)]


def _entry(column: Column, entry: Entry) -> str:
    text = escape(column.show(entry))
    if entry.mark == "best":
        text = f"\\textcolor{{blue}}{{\\textbf{{{text}}}}}"
    elif entry.mark == "second":
        text = f"\\textcolor{{red}}{{\\underline{{{text}}}}}"
    sd = column.show_sd(entry)
    return text + (f" {escape(sd)}" if sd else "") + _remark(entry.remark)


def _remark(text: str) -> str:
    return f" {{\\footnotesize ({escape(text)})}}" if text else ""


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
