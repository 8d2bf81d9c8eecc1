"""YAML files with a line number for every key, so that a mistake can name its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from harness.errors import BenchError, first_line

KeyPath = tuple[Hashable, ...]
MOST_BYTES = 16 * 2**20
MOST_LEVELS = 64  # of nesting
MOST_VALUES = 100_000  # of a file, with each alias written out: what expands to more is no suite
# What a kind of pydantic's errors expected, in our words; braces are filled from the error.
_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping"),
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "{pattern}",
    "literal_error": "",  # names what may stand there
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number from {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number up to {le}",
}
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "a name of letters, digits, '_', '.' and '-' that begins with a letter or a digit",
    r"^[a-z0-9_]+$": "a name of small letters, digits and '_'",
    r"^\S+$": "a name without spaces",
}
_SHORTEST = 3  # letters of a name that is looked for in longer ones
_SLIP = 0.85  # a letter too many or another one, of five or more
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Base of every schema: unknown keys and numbers that are not finite are mistakes, values do not change.

    Attributes:
        elsewhere: Keys that are looked for here → what to write for them.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {}
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
            # pydantic adds names of union members to the path; the file's own path is what the user knows
            errors = [(self._known((*at, *e["loc"]), e["type"] == "missing"), e) for e in error.errors()]
            # where one of several kinds knows a key, another that does not is not what was meant
            others = {where for where, e in errors if e["type"] not in ("extra_forbidden", "missing")}
            meant = [(where, e) for where, e in errors if e["type"] != "extra_forbidden" or where not in others]
            # a misspelt key is also a missing one; the misspelling is what the user can mend
            where, first = min(meant, key=lambda one: _distance(one[1]))
            same = [e for there, e in meant if there == where and e["type"] in _EXPECTED]
            if first["type"] == "missing" and isinstance(where[-1], int):
                where = where[:-1]  # a list that is too short
            raise self.error(where, _sentence(first, same, model, where[len(at) :])) from None

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
        reason = first_line(error, type(error).__name__)
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


def nearest(name: str, known: Iterable[str], also: Mapping[str, str] | None = None) -> str:
    """Return ` (did you mean 'x'?)`, or nothing where no known name is near.

    Args:
        name: What was written.
        known: The names there are.
        also: What some of them are called elsewhere → the name here.
    """
    hit = _nearest(name, [*known], also or {})
    return f" (did you mean {hit!r}?)" if hit else ""


def _nearest(name: str, known: Sequence[str], also: Mapping[str, str]) -> str | None:
    """The same name but for case and punctuation, a slip of the pen, the shortest that holds it, one spelt alike."""
    called = {_bare(one): here for one, here in also.items() if here in known}
    called |= {_bare(one): one for one in reversed(known)}
    bare = _bare(name)
    for one in (bare, bare.removesuffix("loss")):
        if one in called:
            return called[one]
    slips = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=_SLIP)
    holding = sorted((one for one in known if bare in _bare(one)), key=len) if len(bare) >= _SHORTEST else []
    alike = (called[one] for one in difflib.get_close_matches(bare, called, n=1, cutoff=0.6))
    return next(iter((*slips, *holding, *alike)), None)


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


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


def _sentence(error: Any, same: Sequence[Any], model: type[BaseModel], where: KeyPath) -> str:
    """What is wrong at a place.

    Args:
        error: The fault.
        same: All faults of this place that have words in `_EXPECTED`: one for each kind of value that may stand there.
        model: The schema.
        where: The place in it.
    """
    kind, found, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(str(error["loc"][-1]), _model_at(model, where[:-1]))
    if kind == "missing" and isinstance(error["loc"][-1], int):
        return f"expected more values{_example(model, where)}, found {len(found)}."
    if kind == "missing":
        return "this key is required and is not there."
    if kind == "too_long":
        most = context["max_length"]
        return f"expected {most} value{'s'[: most != 1]}{_example(model, where)}, found {len(found)}."
    if kind == "too_short":
        return f"the list is empty; give at least one{_example(model, where)}."
    if kind not in _EXPECTED:
        text = str(error["msg"]).removeprefix("Value error, ")
        if kind == "value_error" and isinstance(found, (dict, list, tuple)):
            return text.removesuffix(".") + "."  # our own sentence says what was found inside
        return text + ("" if text.endswith(".") else f", found {_shown(found)}.")
    # arguments of an optimizer are numbers or flags, by name: a flag is named where it alone may stand
    kinds = [one for one in same if not one["type"].startswith("bool_")] or same
    expected = list(dict.fromkeys(words for one in kinds for words in _expected(one)))
    alone = expected == ["a list"] and isinstance(found, str)
    example = _example(model, where)
    near = nearest(found, [one.strip("'") for one in expected if one[0] == "'"]) if isinstance(found, str) else ""
    hint = f"; write [{found}]" if alone and not example else ""
    listed = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
    return f"expected {listed}{example}, found {_shown(found)}{near}{hint}."


def _expected(error: Any) -> list[str]:
    """What a fault of `_EXPECTED` expected: one or more words of a list."""
    context = {k: f"{v:g}" if isinstance(v, float) else v for k, v in error.get("ctx", {}).items()}
    if error["type"] == "literal_error":
        return re.split(r", | or ", context["expected"])
    if "pattern" in context:
        context["pattern"] = _PATTERNS.get(context["pattern"], f"text of the form {context['pattern']}")
    return [_EXPECTED[error["type"]].format(**context)]


def _example(model: type[BaseModel], where: KeyPath) -> str:
    """`, such as [256, 256]`, where the schema has an example of the field."""
    parent = _model_at(model, where[:-1]) if where else None
    info = _field(parent, where[-1]) if parent is not None else None
    if info is None or not info.examples:
        return ""
    text = yaml.safe_dump(info.examples[0], default_flow_style=True, sort_keys=False, width=10_000)
    return f", such as {text.strip()}"


def _field(model: type[BaseModel], key: Hashable) -> FieldInfo | None:
    return next((info for name, info in model.model_fields.items() if (info.alias or name) == key), None)


def _unknown_key(key: str, model: type[BaseModel] | None) -> str:
    if model is None:
        return "unknown key."
    known = _keys(model)
    listed = f"known: {', '.join(known)}."
    elsewhere = getattr(model, "elsewhere", {})
    if key in elsewhere:
        return f"unknown key; write `{elsewhere[key]}`."
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        if inner is not None and key in (*_keys(inner), *getattr(inner, "elsewhere", {})):
            return f"unknown key, it belongs under `{info.alias or name}`; {listed}"
    return f"unknown key{nearest(key, known)}; {listed}"


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The (nested) model at a path, None where it cannot be told."""
    current: type[BaseModel] | None = model
    for key in path:
        if isinstance(key, int):
            continue
        info = _field(current, key) if current is not None else None
        current = _model_in(info.annotation) if info is not None else None
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    parts = [annotation, *getattr(annotation, "__args__", ())]
    return next((p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)), None)


def _keys(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float, bool)) else kind_of(value)


def kind_of(value: Any) -> str:
    """What a value is, in words: `a mapping`, `text`, `nothing`."""
    if value is None:
        return "nothing"
    return {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number"}.get(
        type(value), type(value).__name__
    )
