"""A loss as one text: `dice`, `my_loss.py:MyLoss(gamma=2)`, as tables show it, or `tversky: {fn_weight: 0.7}`."""

from __future__ import annotations

import ast
import re
from typing import Any

import yaml

from harness.errors import BenchError
from harness.yamlfile import parse_value

FORM = "expected a loss, such as my_loss.py:MyLoss, 'my_loss.py:MyLoss(gamma=2)' or 'tversky: {fn_weight: 0.7}'"
_WORDS = {"true": True, "false": False, "null": None}


def read_loss(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a loss, or of anything that is written like one.

    Raises:
        BenchError: It cannot be read.
    """
    call = re.fullmatch(r"\s*([^(){}]+?)\s*\((.*)\)\s*", text, re.DOTALL)
    if call:
        return call[1], _keywords(text, call[2])
    try:
        entry = parse_value(text)
    except yaml.YAMLError:
        raise BenchError(f"{text!r}: {FORM}.") from None
    name, args = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
    if not isinstance(name, str) or not isinstance(args, dict) or re.search(r"[()]", name):
        raise BenchError(f"{text!r}: {FORM}.")
    return name, dict(args)


def as_entry(text: str) -> str | None:
    """`focal(gamma=2)` as a suite has it, `focal: {gamma: 2}`; None where it is no such text."""
    try:
        name, args = read_loss(text)
    except BenchError:
        return None
    if name == text:
        return None
    shown = yaml.safe_dump({name: args} if args else name, default_flow_style=True, sort_keys=False, width=10_000)
    return shown.removesuffix("\n").removesuffix("\n...").removeprefix("{").removesuffix("}")


def _keywords(text: str, inside: str) -> dict[str, Any]:
    """Arguments as Python writes them; a bare word is a text, true, false and null are what YAML says."""
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError):
        raise BenchError(
            f"{text!r}: expected arguments by name with plain values, such as (gamma=2, weights=[1, 2])."
        ) from None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    value = ast.literal_eval(node)
    return [*value] if isinstance(value, tuple) else value
