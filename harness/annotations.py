"""Whether a value of a suite fits the annotation of a parameter, as far as its source says. Nothing is imported.

Simple types are judged: int, float, bool, str, None, Literal, lists, tuples and mappings of them, Optional and unions.
Anything else, such as a tensor or a class, fits whatever it is given: its constructor is the judge.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from functools import cache
from typing import Any

Alias = Callable[[str], ast.expr | None]
_LISTS = {"Sequence", "list", "List", "Iterable", "Collection"}
_TUPLES = {"tuple", "Tuple"}
_MAPPINGS = {"Mapping", "dict", "Dict"}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}
_MANY = {"int": "whole numbers", "float": "numbers", "bool": "true or false", "str": "texts"}
_GREATEST = 2**63


def spelled_out(node: ast.expr | None, alias: Alias) -> str:
    """An annotation as text, with the names that stand for another type replaced by it.

    Args:
        node: The annotation.
        alias: What a name of its module stands for, or None.
    """
    return "" if node is None else ast.unparse(_SpellOut(alias).visit(ast.parse(ast.unparse(node), mode="eval").body))


def expectation(annotation: str, value: Any) -> str | None:
    """What was expected instead of `value`, in words; None where it fits, or where the annotation cannot be judged."""
    node = _parsed(annotation)
    return None if node is None or _fits(node, value) else _words(node)


class _SpellOut(ast.NodeTransformer):
    def __init__(self, alias: Alias, depth: int = 0) -> None:
        self._alias, self._depth = alias, depth

    def visit_Name(self, node: ast.Name) -> ast.expr:
        found = self._alias(node.id) if self._depth < 4 and node.id not in _WORDS else None
        return node if found is None else _SpellOut(self._alias, self._depth + 1).visit(found)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        return node if _name(node.value) == "Literal" else self.generic_visit(node)  # type: ignore[return-value]


@cache
def _parsed(annotation: str) -> ast.expr | None:
    try:
        return ast.parse(annotation, mode="eval").body if annotation else None
    except SyntaxError:
        return None


def _name(node: ast.expr) -> str:
    """The last part of a dotted name; of a constant its text, for `None` and for annotations in quotes."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else repr(node.value) if isinstance(node, ast.Constant) else ""


def _parts(node: ast.expr) -> list[ast.expr]:
    """What stands in the brackets of a subscript."""
    assert isinstance(node, ast.Subscript)
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _union(node: ast.expr) -> list[ast.expr] | None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*(_union(node.left) or [node.left]), *(_union(node.right) or [node.right])]
    if isinstance(node, ast.Subscript) and _name(node.value) == "Union":
        return _parts(node)
    if isinstance(node, ast.Subscript) and _name(node.value) == "Optional":
        return [*_parts(node), ast.Constant(None)]
    return None


def _fits(node: ast.expr, value: Any) -> bool:
    union = _union(node)
    if union is not None:
        return any(_fits(part, value) for part in union)
    if isinstance(node, ast.Subscript):
        kind, parts = _name(node.value), _parts(node)
        if kind == "Literal":
            known = [p.value for p in parts if isinstance(p, ast.Constant)]
            return len(known) < len(parts) or any(type(k) is type(value) and k == value for k in known)
        if kind in _LISTS:
            return isinstance(value, list) and all(_fits(parts[0], v) for v in value)
        if kind in _TUPLES:
            if not isinstance(value, list):
                return False
            if isinstance(parts[-1], ast.Constant) and parts[-1].value is ...:
                return all(_fits(parts[0], v) for v in value)
            return len(value) == len(parts) and all(_fits(p, v) for p, v in zip(parts, value, strict=True))
        if kind in _MAPPINGS:
            return isinstance(value, dict) and all(_fits(parts[-1], v) for v in value.values())
        return True
    name = _name(node)
    if name == "int":
        return type(value) is int and abs(value) < _GREATEST
    if name == "float":
        return type(value) is float or (type(value) is int and abs(value) < _GREATEST and math.isfinite(float(value)))
    if name in ("bool", "str"):
        return type(value).__name__ == name
    if name == "None":
        return value is None
    if name in _LISTS | _TUPLES:
        return isinstance(value, list)
    return isinstance(value, dict) if name in _MAPPINGS else True


def _words(node: ast.expr) -> str:
    union = _union(node)
    if union is not None:
        return " or ".join(dict.fromkeys(_words(part) for part in union))
    if isinstance(node, ast.Subscript):
        kind, parts = _name(node.value), _parts(node)
        if kind == "Literal":
            shown = [repr(p.value) for p in parts if isinstance(p, ast.Constant)]
            return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"
        if kind in _MAPPINGS:
            return "a mapping"
        inner = _MANY.get(_name(parts[0]), "") if kind in _LISTS | _TUPLES else ""
        fixed = kind in _TUPLES and not (isinstance(parts[-1], ast.Constant) and parts[-1].value is ...)
        number = f"{len(parts)} " if fixed else ""
        return f"a list of {number}{inner or 'values'}" if inner or number else "a list"
    name = _name(node)
    return _WORDS.get(name) or ("a mapping" if name in _MAPPINGS else "a list")
