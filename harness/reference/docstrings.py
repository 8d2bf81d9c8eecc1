"""Docstrings as the losses have them: Google's sections and four of our own, and their text as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

# sections that every built-in loss has, and those that it may have
REQUIRED = ("Advantages", "Disadvantages", "Use", "Elsewhere")
SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Shape", "Note", "Example", *REQUIRED)
_HEADER = re.compile(rf"({'|'.join(SECTIONS)}):")
_ITEM = re.compile(r"(\*{0,2}\w+(?:, \w+)*)(?: \([^)]*\))?:(?:\s+(.*))?")
_LIST = re.compile(r"(?:[-*]|\d+\.) ")


@dataclass(frozen=True)
class Docstring:
    """A docstring in its parts.

    Attributes:
        summary: The first paragraph, in one line.
        body: The lines between the summary and the first section.
        sections: Lines of each section, without their indentation.
        problems: What cannot be read, in sentences.
    """

    summary: str
    body: tuple[str, ...]
    sections: dict[str, tuple[str, ...]]
    problems: tuple[str, ...]

    def items(self, section: str) -> dict[str, str]:
        """Name and text of each entry of a section such as Args; `a, b: text` stands for both."""
        found, _ = _items(self.sections.get(section, ()))
        return found


def parse(text: str | None) -> Docstring:
    """Take a docstring apart; nothing is raised, `problems` says what could not be read."""
    lines = inspect.cleandoc(text or "").splitlines()
    parts: dict[str, list[str]] = {}
    wrong: list[str] = []
    head: list[str] = []
    current = head
    for line in lines:
        header = _HEADER.fullmatch(line.rstrip())
        if header:
            if header[1] in parts:
                wrong.append(f"section {header[1]} stands there twice")
            current = parts.setdefault(header[1], [])
        elif line.strip() and not line.startswith(" ") and current is not head:
            wrong.append(f"text that belongs to no section: {line.strip()[:60]!r}")
        else:
            current.append(line)
    sections = {name: _trimmed(part) for name, part in parts.items()}
    wrong += [f"section {name} is empty" for name, part in sections.items() if not part]
    for name in ("Args", "Attributes", "Raises"):
        wrong += _items(sections.get(name, ()))[1]
    first = next((i for i, line in enumerate(head) if not line.strip()), len(head))
    summary = " ".join(line.strip() for line in head[:first])
    if not summary:
        wrong.append("there is no summary")
    body = tuple("\n".join(head[first:]).strip("\n").splitlines())
    return Docstring(summary, body, sections, tuple(wrong))


def markdown(lines: Iterable[str]) -> str:
    """Lines of a docstring as Markdown: a paragraph is one line, what is indented is a block of code, lists stay."""
    out = []
    for kind, part in _blocks(lines):
        if kind == "code":
            out.append("```text\n" + textwrap.dedent("\n".join(part)) + "\n```")
        elif kind == "list":
            marks = [_LIST.match(item) for item in part]
            out.append("\n".join(m[0] + plain(item[m.end() :]) for m, item in zip(marks, part, strict=True) if m))
        else:
            out.append(plain(part[0]))
    return "\n\n".join(out)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: what stands between backticks is left alone."""
    parts = re.split(r"(`+[^`]+`+)", text)
    for i in range(0, len(parts), 2):
        part = re.sub(r"([\\*~$\[\]])", r"\\\1", parts[i])
        part = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", part)  # between letters and digits it is text anyway
        parts[i] = part.replace("<", "&lt;")
    return "".join(parts)


def cell(text: str) -> str:
    """Text for a cell of a table; its own Markdown stays."""
    return " ".join(text.split()).replace("|", "\\|")


def _blocks(lines: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Text (one string), list (a string for each item) and code (its lines)."""
    blocks: list[tuple[str, list[str]]] = [("", [""])]
    blank = True
    for line in lines:
        text, (kind, part) = line.strip(), blocks[-1]
        if not text:
            blank = True
            continue
        if line.startswith(" ") and kind == "code":
            part += ["", line] if blank else [line]
        elif line.startswith(" ") and not (kind == "list" and not blank):
            blocks.append(("code", [line]))
        elif _LIST.match(text) and kind == "list":
            part.append(text)
        elif _LIST.match(text) and (blank or part[-1].endswith(":")):
            blocks.append(("list", [text]))
        elif kind in ("text", "list") and not blank:
            part[-1] += " " + text
        else:
            blocks.append(("text", [text]))
        blank = False
    return blocks[1:]


def _items(lines: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    found: dict[str, str] = {}
    wrong: list[str] = []
    names: list[str] = []
    for line in lines:
        item = _ITEM.fullmatch(line.rstrip())
        if item and not line.startswith(" "):
            names = [n.strip("* ") for n in item[1].split(",")]
            wrong += [f"{n} is described twice" for n in names if n in found]
            found |= dict.fromkeys(names, item[2] or "")
        elif line.startswith(" ") and names:
            for name in names:
                found[name] = f"{found[name]} {line.strip()}".strip()
        elif line.strip():
            wrong.append(f"neither `name: text` nor indented below one: {line.strip()[:60]!r}")
    wrong += [f"{name} has no text" for name, text in found.items() if not text]
    return found, wrong


def _trimmed(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(textwrap.dedent("\n".join(lines)).strip("\n").splitlines()) if any(x.strip() for x in lines) else ()
