"""YAML files with a line number for every key, so that a mistake can name its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import BenchError

KeyPath = tuple[Hashable, ...]
MOST_BYTES = 16 * 2**20
MOST_LEVELS = 64  # of nesting
MOST_VALUES = 100_000  # of a file, with each alias written out: what expands to more is no suite
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Base of every schema: unknown keys and numbers that are not finite are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class YamlFile:
    """A parsed file.

    Attributes:
        path: Where it lies; used in messages.
        data: Plain Python data, from safe loading.
        lines: 1-based line of every mapping key and sequence item, by its path.
    """

    path: Path
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def error(self, where: Sequence[Hashable], text: str) -> BenchError:
        """A `BenchError` that starts with file, line and key, as far as there are some."""
        keys = tuple(where)
        line = next((self.lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.lines), 1)
        named = _dotted(keys)
        place = f"{self.path}:{line}" if self.lines else str(self.path)  # a value of the command line has no lines
        return BenchError(f"{place}: {named + ': ' if named else ''}{text}")

    def parse(self, model: type[M], data: Any | None = None, at: KeyPath = ()) -> M:
        """Validate `data` (the whole file by default, else the part at path `at`) against a schema."""
        try:
            return model.model_validate(self.data if data is None else data)
        except ValidationError as error:
            # a misspelt key is also a missing one; the misspelling is what the user can mend
            first = min(error.errors(), key=_distance)
            # pydantic adds names of union members to the path; the file's own path is what the user knows
            where = self._known((*at, *first["loc"]), missing=first["type"] == "missing")
            raise self.error(where, _sentence(first, model, where[len(at) :])) from None

    def _known(self, loc: KeyPath, missing: bool) -> KeyPath:
        """The part of a path that stands in the file, and the key that is missing."""
        kept: KeyPath = ()
        for key in loc:
            if (*kept, key) in self.lines:
                kept = (*kept, key)
        return (*kept, loc[-1]) if missing else kept


class _Loader(yaml.SafeLoader):
    """Safe loading in which `1e-4` is a number: YAML 1.1 wants `1.0e-4` and would silently make it text.

    Whole numbers of more than 64 bits and text with control characters or halves of characters, which nothing here
    means and which terminals and other programs choke on, are no values.
    """

    def short_int(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise yaml.constructor.ConstructorError(None, None, "a whole number of more than 64 bits", node.start_mark)
        return value

    def plain_text(self, node: yaml.ScalarNode) -> str:
        value = self.construct_yaml_str(node)
        strange = next((c for c in value if (c < " " and c not in "\t\r\n") or "\x7f" <= c < "\xa0" or _half(c)), None)
        if strange is not None:
            text = f"a character that is none, {strange!r}, stands in a text"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return value


def _half(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.plain_text)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """A number; `12:00:00` stays text, which YAML 1.1 counts in sixties: 43200."""
    if ":" in node.value:
        return node.value
    integer = node.tag.endswith(":int")
    return loader.short_int(node) if integer else loader.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def read_yaml(path: Path) -> YamlFile:
    """Read a file by safe loading.

    Raises:
        BenchError: It is not there, cannot be read, is not YAML, repeats a key or is no mapping.
    """
    try:
        with path.open("rb") as stream:  # a pipe is no regular file, and has no size to ask for
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise BenchError(f"{path}: larger than {MOST_BYTES // 2**20} MB, which no suite or manifest is.")
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise BenchError(f"{path}: is a folder; name a file in it.") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a null character
        raise BenchError(f"{path}: cannot be read as text: {error}.") from None
    found = YamlFile(path, None)
    try:
        loader = _Loader(text)  # a subclass of SafeLoader
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            _index(found, loader, node, (), set())
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BenchError(f"{path}:{line}: not valid YAML: {error.problem}.") from None
    except RecursionError:
        raise BenchError(f"{path}: not valid YAML: nested deeper than {MOST_LEVELS} levels.") from None
    except _NOT_YAML as error:  # what PyYAML raises of values that do not fit their tag, such as `!!bool x`
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BenchError(f"{path}: not valid YAML: {reason}.") from None
    if not isinstance(data, dict):
        raise BenchError(f"{path}:1: expected a mapping of keys to values, found {kind_of(data)}.")
    return YamlFile(path, data, found.lines)


def parse_value(text: str) -> Any:
    """Parse a YAML value from the command line.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or nothing where no known name is near."""
    hit = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {hit[0]!r}?)" if hit else ""


def _index(file: YamlFile, loader: _Loader, node: yaml.Node, path: KeyPath, above: set[int]) -> None:
    """Note the line of every key and item; before the values are made, as that writes merged keys out.

    Raises:
        BenchError: A key stands twice, or the file is nested or expands beyond its bounds.
        yaml.constructor.ConstructorError: A key is a list or a mapping.
    """
    if id(node) in above:
        raise file.error(path, "an alias stands inside of what it stands for.")
    if len(path) > MOST_LEVELS:
        raise file.error(path[:1], f"nested deeper than {MOST_LEVELS} levels.")
    if len(file.lines) > MOST_VALUES:
        raise file.error(path[:1], f"more than {MOST_VALUES:,} values, with the aliases written out.")
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key_node, value_node in node.value:
            merge = key_node.tag == "tag:yaml.org,2002:merge"
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no word", key_node.start_mark)
            key: Hashable = "<<" if merge else loader.construct_object(key_node)
            here = (*path, key)
            if key in seen:
                file.lines[here] = key_node.start_mark.line + 1
                raise file.error(here, "this key stands here a second time; keep one.")
            seen.add(key)
            file.lines[here] = key_node.start_mark.line + 1
            _index(file, loader, value_node, here, above)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            file.lines[(*path, i)] = item.start_mark.line + 1
            _index(file, loader, item, (*path, i), above)


def _distance(error: Any) -> tuple[bool, bool]:
    """How far a fault is from what the user meant; where several kinds are allowed, that of another kind is farther."""
    kind = error["type"]
    other_kind = (kind == "literal_error" or kind.endswith("_type")) and isinstance(error.get("input"), (dict, list))
    return error["type"] != "extra_forbidden", other_kind


def _dotted(keys: KeyPath) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f"{'.' if text else ''}{key}"
    return text


def _sentence(error: Any, model: type[BaseModel], where: KeyPath) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        key = str(error["loc"][-1])
        known = _fields(model, where[:-1])
        return f"unknown key{nearest(key, known)}; known: {', '.join(known)}." if known else "unknown key."
    if kind == "missing":
        return "this key is required and is not there."
    text = str(error["msg"]).removeprefix("Value error, ")
    found = error.get("input")
    if kind == "value_error" and isinstance(found, (dict, list, tuple)):
        return text.removesuffix(".") + "."  # our own sentence says what was found inside
    shown = repr(found) if isinstance(found, (str, int, float, bool, type(None))) else kind_of(found)
    return text + ("" if text.endswith(".") else f", found {shown}.")


def _fields(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Field names of the (nested) model at `path`; empty where it cannot be told."""
    current: Any = model
    for key in path:
        if isinstance(key, int):
            continue
        info = (
            current.model_fields.get(str(key)) if isinstance(current, type) and issubclass(current, BaseModel) else None
        )
        if info is None:
            return []
        parts = [info.annotation, *getattr(info.annotation, "__args__", ())]
        current = next((p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)), None)
    if not (isinstance(current, type) and issubclass(current, BaseModel)):
        return []
    return [info.alias or name for name, info in current.model_fields.items()]


def kind_of(value: Any) -> str:
    """What a value is, in words: `a mapping`, `text`, `nothing`."""
    if value is None:
        return "nothing"
    return {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number"}.get(
        type(value), type(value).__name__
    )
