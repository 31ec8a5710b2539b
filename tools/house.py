"""The rules of the house, as a program: `python tools/house.py` prints what there is and fails where a rule is broken.

Import circles, imports against the layers, frameworks and integrations in the core, names at the top of `pact_plugin/`,
and the longest files and functions. `make lint` runs it; `tests/core/test_architecture.py` asks it for each rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = "pact_plugin"
LAYERS = (
    *(
        "errors",
        "math",
        "model",
        "data",
        "hooks",
        "judge",
        "tokens",
        "settings",
        "config",
        "reference",
        "terms",
        "run",
    ),
    *("constraint", "assemble", "audit", "cli"),
)
"""Of the core, from the lowest. Each may import those before it."""
TRAINERS = frozenset(
    {"transformers", "trl", "axolotl", "swift", "llamafactory", "unsloth", "peft", "accelerate", "datasets"}
)
INTEGRATIONS = frozenset({"pact_transformers", "pact_trl", "pact_axolotl", "pact_swift", "pact_llamafactory"})
PACKAGES = (CORE, "integrations", "benchmarks", "examples", "tools")
"""Those whose files have a longest length."""
NAMES_AT_THE_TOP = 16
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, PARAMETERS = 260, 60, 6
FREE_SIGNATURES = ("math", "cli")
"""The specification fixes the signatures of the mathematics, and every flag of a command is a parameter."""


@dataclass(frozen=True)
class Module:
    """A file of the core."""

    name: str
    """Dotted, below the package."""
    path: Path
    tree: ast.Module

    @property
    def layer(self) -> str:
        return self.name.split(".")[0]


def modules() -> list[Module]:
    """Every module of the core."""
    found = []
    for path in sorted((ROOT / CORE).rglob("*.py")):
        name = (
            ".".join(path.relative_to(ROOT / CORE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        )
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """What a tree imports, at any depth, but not for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def graph(found: list[Module]) -> dict[str, set[str]]:
    """Which modules of the core each imports."""
    names = {one.name for one in found}

    def owner(target: str) -> str | None:
        inside = target.removeprefix(f"{CORE}.")
        while inside and inside not in names:
            inside = inside.rpartition(".")[0]
        return inside or None

    return {
        one.name: {
            to
            for target in imported(one.tree)
            if target.startswith(f"{CORE}.") and (to := owner(target)) is not None and to != one.name
        }
        for one in found
        if one.name
    }


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, and the last is the first; none if there is no such circle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports of a layer above one's own, and of layers that are not listed."""
    found = []
    for name, targets in sorted(edges.items()):
        for to in sorted(targets):
            of, at = name.split(".")[0], to.split(".")[0]
            unknown = {of, at} - set(LAYERS)
            if unknown:
                found.append(f"{name} -> {to}: {', '.join(sorted(unknown))} is no layer")
            elif LAYERS.index(at) > LAYERS.index(of):
                found.append(f"{name} -> {to}")
    return found


def foreign(found: list[Module]) -> list[str]:
    """Trainer frameworks and integrations that the core imports."""
    return [
        f"{one.name} imports {target}"
        for one in found
        for target in imported(one.tree)
        if target.split(".")[0] in TRAINERS | INTEGRATIONS
    ]


def at_the_top() -> list[str]:
    """The names that a stranger sees first."""
    hidden = ("__init__.py", "__pycache__", "py.typed")
    return sorted(path.name for path in (ROOT / CORE).iterdir() if path.name not in hidden)


def long_files() -> list[tuple[int, str]]:
    """Lines of each file, the longest first."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(((len(p.read_text().splitlines()), str(p.relative_to(ROOT))) for p in paths), reverse=True)


def functions(found: list[Module]) -> Iterator[tuple[str, int, int]]:
    """Each function with its lines, docstring apart, and its parameters, the receiver apart."""
    for one in found:
        for node in ast.walk(one.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            yield (
                f"{one.name}.{node.name}",
                lines,
                len([name for name in names if name not in ("self", "cls")]),
            )


def broken() -> Iterator[str]:
    """Every rule that is broken."""
    found = modules()
    edges = graph(found)
    if around := circle(edges):
        yield f"import circle: {' <- '.join(around)}"
    yield from (f"import against the layers: {edge}" for edge in upward(edges))
    yield from (f"framework or integration in the core: {one}" for one in foreign(found))
    names = at_the_top()
    if len(names) > NAMES_AT_THE_TOP:
        yield f"{len(names)} names at the top of {CORE}/, at most {NAMES_AT_THE_TOP}: {', '.join(names)}"
    for lines, path in long_files():
        if lines > LINES_OF_A_FILE:
            yield f"{path} has {lines} lines, at most {LINES_OF_A_FILE}"
    for name, lines, parameters in functions(found):
        if lines > LINES_OF_A_FUNCTION:
            yield f"{name} has {lines} lines, at most {LINES_OF_A_FUNCTION}"
        if parameters > PARAMETERS and name.split(".")[0] not in FREE_SIGNATURES:
            yield f"{name} has {parameters} parameters, at most {PARAMETERS}"


def main() -> int:
    """Print the house and what is broken; 1 if anything is."""
    found, names = modules(), at_the_top()
    print(f"{len(names)} names at the top of {CORE}/: {' '.join(names)}")
    print("longest files:", ", ".join(f"{path} {lines}" for lines, path in long_files()[:6]))
    longest = sorted(functions(found), key=lambda one: -one[1])[:6]
    print("longest functions:", ", ".join(f"{name} {lines}" for name, lines, _ in longest))
    problems = list(broken())
    for problem in problems:
        print(f"broken: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
