"""Which module imports which, read from the sources without running them, imports inside functions too."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import networkx as nx

Kind = Literal["top", "lazy", "typing"]
Edges = dict[tuple[str, str], list["Import"]]


@dataclass(frozen=True)
class Module:
    """A file. name: dotted, as it is imported; path: under the root; package: it is an __init__.py."""

    name: str
    path: str
    package: bool
    tree: ast.Module

    @property
    def folder(self) -> str:
        """The dotted name of the folder that the file lies in."""
        return self.name if self.package else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Import:
    """One module's import of another of the project.

    where: "file:line". kind: "top" runs with the importer, "lazy" inside a function, "typing" never.
    """

    source: str
    target: str
    where: str
    kind: Kind


@dataclass(frozen=True)
class Layers:
    """A layers contract of import-linter: `floors` from top to bottom, each a set of folders in `container`.

    independent: for each floor, whether its folders may not import each other ("a | b", not "a : b").
    """

    container: str
    floors: tuple[frozenset[str], ...]
    independent: tuple[bool, ...]

    def floor(self, module: str) -> tuple[int, str] | None:
        """Which floor (0 is the top) and which folder a module belongs to; None where it is in none."""
        if not module.startswith(self.container + "."):
            return None
        child = module[len(self.container) + 1 :].partition(".")[0]
        return next(((n, child) for n, names in enumerate(self.floors) if child in names), None)

    def forbids(self, one: Import) -> bool:
        """Whether an import goes up, or sideways where the floor's folders are independent."""
        here, there = self.floor(one.source), self.floor(one.target)
        if here is None or there is None or here[1] == there[1]:
            return False
        return there[0] < here[0] or (there[0] == here[0] and self.independent[here[0]])


def read(root: Path) -> dict[str, Module]:
    """The modules of conceptkit/ and of the folders that pyproject.toml maps into it, by dotted name."""
    mapped = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"].get("package-dir", {})
    modules = {}
    for package, top in {"conceptkit": "conceptkit", **mapped}.items():
        for file in sorted((root / top).rglob("*.py")):
            parts = [package, *file.relative_to(root / top).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
            modules[name] = Module(name, file.relative_to(root).as_posix(), is_package, tree)
    return modules


def layers(root: Path) -> list[Layers]:
    """The layers contracts of pyproject.toml, one for each container."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    found = []
    for contract in settings["contracts"]:
        if contract["type"] != "layers":
            continue
        rows = [row.replace(":", "|").split("|") for row in contract["layers"]]
        floors = tuple(frozenset(name.strip(" ()") for name in row) for row in rows)
        independent = tuple(":" not in row for row in contract["layers"])
        found += [Layers(container, floors, independent) for container in contract["containers"]]
    return found


def imports(modules: dict[str, Module]) -> list[Import]:
    """Every import of one module of the project by another, in the order of the files; once a statement."""
    found: dict[Import, None] = {}
    for module in modules.values():
        for name, line, kind in _statements(module.tree, module, "top"):
            target = _known(name, modules)
            if target and target != module.name:
                found[Import(module.name, target, f"{module.path}:{line}", kind)] = None
    return list(found)


def _asked(node: ast.AST, module: Module) -> list[str]:
    """The dotted names that an import statement, or `import_module("name")`, in a module asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = module.folder.split(".")
        parents = above[: len(above) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        return [base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
        name = node.args[0].value
        return [name] if called in ("import_module", "__import__") and isinstance(name, str) else []
    return []


def _statements(node: ast.AST, module: Module, kind: Kind) -> Iterator[tuple[str, int, Kind]]:
    """(dotted name, line, kind) of each import below a node."""
    for child in ast.iter_child_nodes(node):
        for name in _asked(child, module):
            yield name, child.lineno, kind
        if isinstance(child, ast.If) and _type_checking(child.test):
            yield from _statements(ast.Module(child.body, []), module, "typing")
            yield from _statements(ast.Module(child.orelse, []), module, kind)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _statements(child, module, "lazy" if function and kind == "top" else kind)


def _type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", None) == "TYPE_CHECKING" or getattr(test, "attr", None) == "TYPE_CHECKING"


def _known(name: str, modules: dict[str, Module]) -> str | None:
    """The module that a dotted name is in, `conceptkit.base` for `conceptkit.base.Base`; None: elsewhere."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def room_of(name: str, modules: dict[str, Module]) -> str:
    """The folder of a module. The program `python -m conceptkit` belongs to the commands that it starts."""
    module = modules[name]
    commands = f"{module.folder}.cli"
    return commands if name == "conceptkit.__main__" and commands in modules else module.folder


def between_rooms(found: Iterable[Import], modules: dict[str, Module]) -> Edges:
    """The imports that run and lead from one folder to another, by (importing, imported) folder."""
    edges: Edges = {}
    for one in found:
        pair = room_of(one.source, modules), room_of(one.target, modules)
        if one.kind != "typing" and pair[0] != pair[1]:
            edges.setdefault(pair, []).append(one)
    return edges


def cycles(found: list[Import], modules: dict[str, Module]) -> list[Edges]:
    """The circles of folders, lazy imports counted, each as the imports that it consists of.

    A folder is compared with its neighbours, one level at a time: a subfolder with the files and folders
    beside it. So learn.trainer may import learn.methods, which imports learn.config: no circle.
    """
    rooms = {room_of(name, modules) for name in modules}
    circles = []
    for folder in sorted({parent for room in rooms if (parent := room.rpartition(".")[0])}):
        edges = _inside(folder, found, modules)
        for names in nx.strongly_connected_components(nx.DiGraph(list(edges))):
            if len(names) > 1 and names & (rooms - {folder}):
                circles.append({pair: edges[pair] for pair in sorted(edges) if names.issuperset(pair)})
    return sorted(circles, key=lambda circle: min(circle))


def floors(found: list[Import], modules: dict[str, Module]) -> int:
    """How many floors the rooms under conceptkit stand on: the longest chain of imports, a circle as one."""
    graph = nx.DiGraph(list(_inside("conceptkit", found, modules)))
    return nx.dag_longest_path_length(nx.condensation(graph)) + 1 if graph else 1


def _inside(folder: str, found: list[Import], modules: dict[str, Module]) -> Edges:
    """The imports that run between the children of a folder; the files in conceptkit itself are one child."""

    def child(name: str) -> str | None:
        if name == "conceptkit.__main__":
            return room_of(name, modules)
        if folder == modules[name].folder == "conceptkit" or name == folder:
            return folder
        inner = name.removeprefix(folder + ".")
        return f"{folder}.{inner.partition('.')[0]}" if inner != name else None

    edges: Edges = {}
    for one in found:
        pair = child(one.source), child(one.target)
        if one.kind != "typing" and pair[0] and pair[1] and pair[0] != pair[1]:
            edges.setdefault((pair[0], pair[1]), []).append(one)
    return edges
