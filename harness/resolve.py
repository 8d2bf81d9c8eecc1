"""From a name in a suite to a class, read from its source without importing it.

`dice` stands in a table, `torch.nn.CrossEntropyLoss` and `pkg.mod:Class` are dotted paths, `my_loss.py:MyLoss` is
a file.
Reading the source with `ast` keeps `bench plan` fast (no torch), checks arguments before any data is touched, and runs
no code of a file that is only planned.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.annotations import expectation, spelled_out
from harness.errors import BenchError
from harness.loss_text import as_entry
from harness.losses import ALSO_CALLED, LOSSES
from harness.paths import there
from harness.yamlfile import kind_of, nearest

_PACKAGE = Path(__file__).resolve().parent
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SHOWN = 6  # names of classes in a message


@dataclass(frozen=True)
class Param:
    """A parameter of a constructor."""

    name: str
    required: bool
    annotation: str
    kind: str = ""  # the annotation with the names of its module spelled out
    none: bool = False  # null is its default, whatever the annotation says
    default: str = ""  # as written; empty where there is none


@dataclass(frozen=True)
class Found:
    """A class found in source.

    Attributes:
        name: As written by the user.
        target: `pkg.mod:Class` or `/absolute/file.py:Class`: what a worker imports.
        params: Parameters of the constructor, without `self`.
        any_keyword: The constructor takes `**kwargs`: unknown names cannot be told from here.
        needs: Keyword-only parameters of `forward`: (name, required).
        version: Class attribute `version`, 0 where there is none.
        digest: Of the class's source and of what it uses from the same file or from this package.
        space: Class attribute `space` as written, empty where there is none: what `tune:` may vary.
    """

    name: str
    target: str
    params: tuple[Param, ...]
    any_keyword: bool
    needs: tuple[tuple[str, bool], ...]
    version: int
    digest: str
    space: str = ""

    def normalised(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in the one form that ids are made of: `2` and `2.0` are the same where a float is expected."""
        floats = {p.name for p in self.params if re.search(r"\bfloat\b", p.annotation)}
        return {k: float(v) if k in floats and type(v) is int else v for k, v in args.items()}

    def check_arguments(self, args: Mapping[str, Any], filled: frozenset[str] = frozenset()) -> str | None:
        """Say what is wrong with keyword arguments, or None; `filled` are names that the harness supplies."""
        known = [p.name for p in self.params]
        for key in args:
            if key not in known and not self.any_keyword:
                listed = ", ".join(known) or "none"
                return f"unknown argument {key!r}{nearest(str(key), known)}; its arguments: {listed}."
        for param in self.params:
            value = args.get(param.name)
            wanted = None if value is None and param.none else expectation(param.kind, value)
            if param.name in args and wanted:
                shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else kind_of(value)
                return f"argument {param.name!r}: expected {wanted}, found {shown[:80]}."
        missing = [p.name for p in self.params if p.required and p.name not in args and p.name not in filled]
        return f"argument {missing[0]!r} is required and has no default." if missing else None


def locate(name: str, table: Mapping[str, str], kind: str, base: Path, fallback: str = "") -> Found:
    """Find the class behind a name.

    Args:
        name: A key of `table`, a dotted path, or `file.py:Class` relative to `base` or to the working directory.
        table: Built-in names.
        kind: "loss" or "model", for messages.
        base: Folder of the suite file.
        fallback: A module in which a bare unknown name is looked up, such as `monai.networks.nets`.

    Raises:
        BenchError: There is no such class.
    """
    if name in table:
        return _read(name, table[name])
    if ("(" in name or "{" in name) and (entry := as_entry(name)) is not None:
        raise BenchError(f"expected `name: {{argument: value}}`, found {name!r}; write `{entry}`.")
    if ".py:" in name or name.endswith(".py"):
        file, _, cls = name.rpartition(":") if ".py:" in name else (name, "", "")
        paths = [p for p in (base / file, Path(file)) if there(p)]
        if not paths:
            beside = f" or in {base}" if base != Path() else ""
            raise BenchError(f"no file {file!r} in the working directory{beside}.")
        path = paths[0].resolve()
        if not cls:
            forms = [f"{file}:{one}" for one in _networks(str(path))]
            if not forms:
                raise BenchError(f"{path} holds no class derived from torch.nn.Module, which a {kind} is.")
            raise BenchError(f"expected a class, found a file; write {_listed(forms, ' or ')}.")
        return _read(name, f"{path}:{cls}")
    if ":" in name or "." in name:
        return _read(name, name if ":" in name else ":".join(name.rsplit(".", 1)))
    if fallback and _class_in(fallback, name) is not None:
        return _read(name, f"{fallback}:{name}")
    verb = "bench list losses" if kind == "loss" else "bench list models"
    called = {target.partition(":")[2]: one for one, target in table.items()} | (ALSO_CALLED if kind == "loss" else {})
    bare = f"a class of {fallback} goes by its bare name, " if fallback else ""
    raise BenchError(
        f"unknown {kind} {name!r}{nearest(name, table, called)}; `{verb}` names the {len(table)} that are built in, "
        f"{bare}pkg.mod:Class and file.py:Class name one of your own."
    )


def load(target: str) -> Any:
    """Import the class behind `Found.target`.

    Raises:
        BenchError: Its module cannot be imported or has no such name.
    """
    where, _, cls = target.rpartition(":")
    try:
        module = _user_module(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (ImportError, SyntaxError, FileNotFoundError) as error:
        raise BenchError(f"{where} cannot be imported: {error}.") from error
    if not hasattr(module, cls):
        raise BenchError(f"{where} has no class {cls!r}.")
    return getattr(module, cls)


def summary(target: str) -> str:
    """First line of a class's docstring, read from its source."""
    where, _, cls = target.rpartition(":")
    place = _class_in(where, cls)
    text = ast.get_docstring(place.node) if place else None
    return text.splitlines()[0] if text else ""


def state_of(target: str) -> str:
    """What of a loss changes before or during a training, as far as its source says.

    Args:
        target: `Found.target`.

    Returns:
        "epoch_end", "prepare" or "Parameter", or "" where nothing is found.
    """
    where, _, cls = target.rpartition(":")
    place = _class_in(where, cls)
    if place is None:
        return ""
    found = next((name for name in ("epoch_end", "prepare") if _method(place, name)), "")
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(place.node)}
    return found or ("Parameter" if "Parameter" in names else "")


def _user_module(path: Path) -> ModuleType:
    """Import a user's file once for each state of it: an edited file is another module."""
    name = "bench_user_" + hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise BenchError(f"{path} cannot be loaded as Python.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses and pickling look themselves up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def current_digest(target: str) -> str:
    """The digest of a class as its source stands on disk now, past every cache."""
    forget()
    return _read(target, target).digest


def forget() -> None:
    """Read sources from disk again: in a process that lives on, such as a notebook, they are edited between calls."""
    for cached in (_read, _tree, _class_in):
        cached.cache_clear()


@dataclass(frozen=True)
class _Place:
    """A class statement and the module it stands in."""

    module: str
    path: Path
    tree: ast.Module
    node: ast.ClassDef


@cache
def _read(name: str, target: str) -> Found:
    where, _, cls = target.rpartition(":")
    place = _class_in(where, cls)
    if place is None:
        raise BenchError(_absent(where, cls))
    init = _method(place, "__init__")
    params, any_keyword = _params(init, place.module) if init else ((), False)
    forward = _method(place, "forward")
    needs: tuple[tuple[str, bool], ...] = ()
    if forward:
        pairs = zip(forward.args.kwonlyargs, forward.args.kw_defaults, strict=True)
        needs = tuple((a.arg, d is None) for a, d in pairs)
    version = next((v for v in (_constant(s, "version") for s in place.node.body) if isinstance(v, int)), 0)
    return Found(name, target, params, any_keyword, needs, version, _digest(place), _space(place))


def _absent(module: str, name: str) -> str:
    """Why there is no such class, with what stands there in its place."""
    path = _source(module)
    if path is None:
        return f"no module {module!r} is installed."
    if any(isinstance(node, _Function) and node.name == name for node in _tree(path).body):
        return f"{name!r} in {module} is a function, expected a class derived from torch.nn.Module."
    own = _networks(module)
    listed = f"; it has: {_listed(own, ', ')}" if own else ""
    return f"{module} has no class {name!r}{nearest(name, _names(module))}{listed}."


def _networks(module: str) -> list[str]:
    """The classes of a file that look like modules of torch: a `forward`, or a base that is called so."""
    path = _source(module)
    names = [n.name for n in _tree(path).body if isinstance(n, ast.ClassDef)] if path else []
    places = [place for place in (_class_in(module, name) for name in names) if place is not None]
    return [p.node.name for p in places if _method(p, "forward") or _derived(p)]


def _derived(place: _Place) -> bool:
    return any(ast.unparse(base).endswith(("Module", "Loss")) for one in _line(place) for base in one.node.bases)


def _names(module: str, depth: int = 0) -> list[str]:
    """Names of the classes and imports of a module, star imports followed."""
    path = _source(module)
    if path is None or depth > 2:
        return []
    names: list[str] = []
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                star = alias.name == "*"
                names += _names(_absolute(node, module, path), depth + 1) if star else [alias.asname or alias.name]
    return names


def _listed(names: Sequence[str], joint: str) -> str:
    return joint.join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _source(module: str) -> Path | None:
    """The file of a module, found without importing anything."""
    if module.endswith(".py"):
        return Path(module) if there(Path(module)) else None
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*rest)
        for candidate in (path.with_name(path.name + ".py"), path / "__init__.py"):
            if there(candidate):
                return candidate
    return None


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise BenchError(f"{path}:{error.lineno}: not valid Python: {error.msg}.") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise BenchError(f"{path}: cannot be read as Python: {reason}.") from None


@cache
def _class_in(module: str, name: str, depth: int = 0) -> _Place | None:
    """Follow `from x import y`, aliases and star imports from a module to the class statement."""
    path = _source(module)
    if path is None or depth > 6:
        return None
    tree = _tree(path)
    stars: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _Place(module, path, tree, node)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            if any(isinstance(t, ast.Name) and t.id == name for t in node.targets) and node.value.id != name:
                return _class_in(module, node.value.id, depth + 1)
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(node, module, path)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _class_in(origin, alias.name, depth + 1)
                if alias.name == "*":
                    stars.append(origin)
    found = next((hit for hit in (_class_in(s, name, depth + 1) for s in stars) if hit), None)
    if found is None and module == "harness.losses":  # its classes are imported when they are first asked for
        lazy = next((t.partition(":")[0] for t in LOSSES.values() if t.partition(":")[2] == name), None)
        return _class_in(lazy, name, depth + 1) if lazy else None
    return found


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    up = node.level - (1 if path.name == "__init__.py" else 0)
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def _method(place: _Place, name: str) -> _Function | None:
    """A method of the class or of its bases, as far as their source can be followed."""
    for one in _line(place):
        for node in one.node.body:
            if isinstance(node, _Function) and node.name == name:
                return node
    return None


def _space(place: _Place) -> str:
    """The class attribute `space` of the class or of its bases, as written."""
    for one in _line(place):
        for node in one.node.body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and _assigns(node, "space"):
                return _text(node.value)
    return ""


def _line(place: _Place, depth: int = 0) -> Iterator[_Place]:
    """The class and its bases, as far as their source can be followed."""
    yield place
    if depth > 6:
        return
    for base in place.node.bases:
        label = base.id if isinstance(base, ast.Name) else ""
        parent = _class_in(place.module, label) if label and label != "Module" else None
        if parent:
            yield from _line(parent, depth + 1)


def _params(node: _Function, module: str) -> tuple[tuple[Param, ...], bool]:
    spec = node.args
    plain = [*spec.posonlyargs, *spec.args][1:]
    defaults = [*[None] * (len(plain) - len(spec.defaults)), *spec.defaults[-len(plain) or len(spec.defaults) :]]
    pairs = [*zip(plain, defaults, strict=True), *zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    found = tuple(
        Param(
            a.arg,
            default is None,
            _text(a.annotation),
            spelled_out(a.annotation, lambda name: _alias(module, name)),
            isinstance(default, ast.Constant) and default.value is None,
            _text(default),
        )
        for a, default in pairs
    )
    return found, spec.kwarg is not None


def _alias(module: str, name: str, depth: int = 0) -> ast.expr | None:
    """The type that a name of a module stands for, such as `Reduction = Literal["batch", "image"]`."""
    path = _source(module) if depth < 4 else None
    for node in _tree(path).body if path else ():
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            origin = next(a.name for a in node.names if (a.asname or a.name) == name)
            return _alias(_absolute(node, module, path), origin, depth + 1) if path else None
        if _assigns(node, name) and isinstance(getattr(node, "value", None), (ast.Subscript, ast.BinOp)):
            value: ast.expr = node.value  # type: ignore[attr-defined]
            return value
    return None


def _text(node: ast.expr | None) -> str:
    return ast.unparse(node) if node else ""


def _constant(node: ast.stmt, name: str) -> Any:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    if any(isinstance(t, ast.Name) and t.id == name for t in targets):
        value = node.value  # type: ignore[attr-defined]
        return value.value if isinstance(value, ast.Constant) else None
    return None


def _digest(place: _Place) -> str:
    """Of the class and of all it names in its own file or in this package, without comments, docstrings and `space`."""
    ours = place.path.is_relative_to(_PACKAGE)
    if not ours and "site-packages" in place.path.parts:
        return hashlib.sha256(place.path.read_bytes()).hexdigest()
    seen: dict[tuple[Path, str], str] = {}
    _collect(place.path, place.module, place.node.name, seen)
    text = "\n".join(seen[key] for key in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()


# What a model's numbers travel in says nothing of the numbers: a new field makes no record stale.
_CONTAINERS = frozenset({"harness.models.output"})


def _collect(path: Path, module: str, name: str, seen: dict[tuple[Path, str], str]) -> None:
    if (path, name) in seen:
        return
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = _absolute(node, module, path)
                    ours = origin.startswith("harness.") and origin not in _CONTAINERS
                    source = _source(origin) if ours else None
                    if source:
                        _collect(source, origin, alias.name, seen)
            continue
        defined = getattr(node, "name", None)
        if defined != name and not _assigns(node, name):
            continue
        seen[(path, name)] = ast.unparse(_without_docstrings(node))
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                _collect(path, module, part.id, seen)


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(t, ast.Name) and t.id == name for t in targets)


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    copy = ast.parse(ast.unparse(node)).body[0]
    for part in ast.walk(copy):
        body = getattr(part, "body", None)
        is_scope = isinstance(part, (ast.ClassDef, *_Function.__args__))
        if is_scope and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            part.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
        if isinstance(part, ast.ClassDef):  # where to look for good arguments says nothing of the numbers
            part.body = [n for n in part.body if not (_assigns(n, "space") and isinstance(n.value, ast.Dict))] or [  # type: ignore[attr-defined]
                ast.Pass()
            ]
    return copy
