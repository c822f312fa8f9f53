"""The packages as syntax trees: who imports whom, and where a name stands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedpers", "strategies", "clients", "simulations")
Graph = Mapping[str, Mapping[str, int]]
"""For each module those that it imports, and the line of the first import."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The packages' modules by dotted name; a package is its ``__init__.py``."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(root: Path = ROOT) -> Graph:
    """Who imports whom: at the top of a file, in a function, or for types alone."""
    known, graph = modules(root), dict[str, dict[str, int]]()
    for name, path in known.items():
        graph[name] = {}
        for target, line in _imported(path):
            while target and target not in known:  # a class, a function, or nothing of ours
                target = target.rpartition(".")[0]
            if target and target != name:
                graph[name].setdefault(target, line)
    return graph


def _imported(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def circles(graph: Mapping[str, Mapping[str, int]]) -> list[list[str]]:
    """Sets of modules of which each imports, over others, each other one (Tarjan 1972)."""
    number, low, stack, found = dict[str, int](), dict[str, int](), list[str](), list[list[str]]()

    def visit(one: str) -> None:
        number[one] = low[one] = len(number)
        stack.append(one)
        for other in graph.get(one, ()):
            if other not in number:
                visit(other)
                low[one] = min(low[one], low[other])
            elif other in stack:
                low[one] = min(low[one], number[other])
        if low[one] == number[one]:
            k = stack.index(one)
            members = sorted(stack[k:])
            del stack[k:]
            if len(members) > 1:
                found.append(members)

    for one in graph:
        if one not in number:
            visit(one)
    return sorted(found)


def names(path: Path) -> Iterator[tuple[str, int]]:
    """What stands in a file but for comments, and its lines: names, what is imported, texts."""
    for node in ast.walk(tree_of(path)):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name, line
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, line
            case ast.keyword(arg=str(name)):
                yield name, node.value.lineno
            case ast.Constant(value=str(text)):
                yield from ((part, line + k) for k, part in enumerate(text.split("\n")))
            case ast.ImportFrom():
                yield from ((f"{node.module}.{alias.name}", line) for alias in node.names)
            case ast.Import():
                yield from ((alias.name, line) for alias in node.names)


def override_lookups(path: Path) -> Iterator[int]:
    """Lines that find out which class defines a method, or whether one was overridden:
    ``f.__func__ is``, ``f is not Base.f``, ``name in cls.__dict__``."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
            text = f"{ast.unparse(left)} {ast.unparse(right)}"
            held = isinstance(operator, ast.In | ast.NotIn)
            same = _looked_up(left) is not None and _looked_up(left) == _looked_up(right)
            if "__func__" in text or same or (held and re.search(r"__dict__|\bvars\(", text)):
                yield node.lineno


def _looked_up(node: ast.expr) -> str | None:
    """The attribute that an expression takes of a class: ``f`` of ``type(x).f``, ``Base.f``,
    ``cls.f`` and ``getattr(Base, "f")``; None of anything else."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
        return ast.unparse(node.args[1]).strip("'")
    if not isinstance(node, ast.Attribute):
        return None
    owner = node.value
    of_type = isinstance(owner, ast.Call) and ast.unparse(owner.func) == "type"
    of_class = isinstance(owner, ast.Name) and (owner.id == "cls" or owner.id[0].isupper())
    return node.attr if of_type or of_class else None


def channel_settings(path: Path) -> Iterator[int]:
    """Lines that read ``config.encryption``, or ask whether ``privacy`` is by client."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("encryption", "by_client"):
            yield node.lineno
        if isinstance(node, ast.Compare) and re.fullmatch(
            r".*\bunit\b.* (==|!=) '(client|example)'", ast.unparse(node)
        ):
            yield node.lineno
