"""The product's source code as syntax trees: modules, imports, top-level names, functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.places import ROOT

PRODUCT = "codi_tracing."
PACKAGES = ("configs", "traces", "analysis", "patching", "codi_tracing")
SCRIPTS = (ROOT / "analysis" / "notebooks", ROOT / "traces" / "embedded")  # not imported by any module
HEAVY = {"torch", "nnsight", "transformers", "peft", "pandas", "altair", "scipy"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its name without `codi_tracing.`; the front door's begin with `codi_tracing`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not any(script in path.parents for script in SCRIPTS):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(module: str) -> str:
    """The folder of a module; a module that stands directly in a package is a room of its own."""
    return ".".join(module.split(".")[:2])


def nodes(path: Path, *, top_level: bool = False) -> Iterator[ast.AST]:
    """All nodes of a file but those of TYPE_CHECKING blocks; with `top_level`, only those that run at import."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if not (top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            pending += ast.iter_child_nodes(node)


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """The dotted names that a file imports: modules, and `module.name` for each name taken from a module."""
    found: set[str] = set()
    for node in nodes(path, top_level=top_level):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def distributions(path: Path, *, top_level: bool = False) -> set[str]:
    """The first parts of the imported names: torch, pandas, codi_tracing, …"""
    return {name.partition(".")[0] for name in imports(path, top_level=top_level)}


def ours(path: Path) -> set[str]:
    """The product's modules that a file imports."""
    found = set()
    for name in imports(path):
        if name.startswith(PRODUCT):
            dotted = name.removeprefix(PRODUCT)
            if dotted.startswith("cli"):
                dotted = f"{PRODUCT}{dotted}"
            while dotted and dotted not in modules():
                dotted = dotted.rpartition(".")[0]
            found.add(dotted or "codi_tracing")
    return found


def public_names(path: Path) -> Iterator[str]:
    """Functions, classes and constants that a module defines at top level, without a leading underscore."""
    for node in tree(path).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_"))


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    """All functions and methods of a file, inner ones included."""
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))


def normalised_body(function: ast.FunctionDef) -> tuple[int, str]:
    """The number of statements in a body without its docstring, and the body with its local names numbered."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    copied = ast.parse(ast.unparse(ast.Module(body, [])))
    arguments = [argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)]
    stored = [node.id for node in ast.walk(copied) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    numbers = {name: f"local_{at}" for at, name in enumerate(dict.fromkeys([*arguments, *stored]))}
    for node in ast.walk(copied):
        if isinstance(node, ast.Name):
            node.id = numbers.get(node.id, node.id)
    return sum(isinstance(node, ast.stmt) for node in ast.walk(copied)), ast.dump(copied)
