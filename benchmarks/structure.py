"""Whether the sources keep to their plan: rooms, imports between them, lengths, docstrings, the README.

A room is a folder with .py files. The floors are the layers contract in pyproject.toml, which `make lint`
checks as well. Run `python -m benchmarks.structure`; it reads the sources and runs none of them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks import import_graph
from benchmarks.definitions import Definition, annotated_any, definitions, undocumented
from benchmarks.import_graph import Edges, Import, Module

ROOT = Path(__file__).parents[1]
BARS = {
    "upward_imports": 0,
    "cycles": 0,
    "longest_signature": 8,
    "longest_body": 60,
    "undocumented": 0,
    "readme_lines": 180,
}


@dataclass(frozen=True)
class Structure:
    """What was found. edges: the imports between rooms; outside: modules that no layer names.

    signatures, bodies: longest first, no click commands among the signatures.
    """

    modules: dict[str, Module]
    imports: list[Import]
    edges: Edges
    upward: list[Import]
    outside: list[str]
    cycles: list[Edges]
    floors: int
    signatures: list[Definition]
    bodies: list[Definition]
    undocumented: list[Definition]
    silent_dunders: list[Definition]
    any: list[Definition]
    readme_lines: int

    def figures(self) -> dict[str, int]:
        """Every count; those that BARS names have to be at most that."""
        statements = [one for several in self.edges.values() for one in several]
        return {
            "upward_imports": len(self.upward),
            "cycles": len(self.cycles),
            "longest_signature": self.signatures[0].parameters if self.signatures else 0,
            "longest_body": self.bodies[0].lines if self.bodies else 0,
            "undocumented": len(self.undocumented),
            "readme_lines": self.readme_lines,
            "rooms": len({import_graph.room_of(name, self.modules) for name in self.modules}),
            "floors": self.floors,
            "edges": len(self.edges),
            "imports_between_rooms": len(statements),
            "lazy_imports_between_rooms": sum(one.kind == "lazy" for one in statements),
            "type_checking_imports": sum(one.kind == "typing" for one in self.imports),
            "modules_in_no_layer": len(self.outside),
            "rooms_in_cycles": sum(len({room for pair in circle for room in pair}) for circle in self.cycles),
            "signatures_too_long": sum(d.parameters > BARS["longest_signature"] for d in self.signatures),
            "bodies_too_long": sum(d.lines > BARS["longest_body"] for d in self.bodies),
            "dunders_without_docstring": len(self.silent_dunders),
            "public_functions_with_any": len(self.any),
        }

    def broken(self) -> list[str]:
        """The names of the figures that are above their bar."""
        figures = self.figures()
        return [name for name, bar in BARS.items() if figures[name] > bar]


def measure(root: Path = ROOT) -> Structure:
    """Read the sources under a checkout's root. Raises SyntaxError where one is no Python."""
    modules = import_graph.read(root)
    contracts = import_graph.layers(root)
    imports = import_graph.imports(modules)
    found = definitions(modules.values())
    functions = [d for d in found if d.parameters or d.lines]
    readme = root / "README.md"
    return Structure(
        modules=modules,
        imports=imports,
        edges=import_graph.between_rooms(imports, modules),
        upward=[one for one in imports if one.kind != "typing" and any(c.forbids(one) for c in contracts)],
        outside=[n for n in modules if not any(c.floor(n) for c in contracts) and n.count(".")],
        cycles=import_graph.cycles(imports, modules),
        floors=import_graph.floors(imports, modules),
        signatures=sorted((d for d in functions if not d.is_command), key=lambda d: -d.parameters),
        bodies=sorted(functions, key=lambda d: -d.lines),
        undocumented=undocumented(found),
        silent_dunders=[d for d in found if d.public and d.is_dunder and not (d.local or d.documented)],
        any=annotated_any(found),
        readme_lines=len(readme.read_text(encoding="utf-8").splitlines()) if readme.exists() else 0,
    )


def lines(found: Structure) -> list[str]:
    """The findings for a reader: what is above its bar, place by place, then every figure."""
    out = [f"  {name}" for name in found.outside]
    out = ["Modules in no layer:", *out, ""] if out else []
    if found.upward:
        out += ["Upward imports (or sideways, between independent rooms):"]
        out += [f"  {one.where} {one.source} -> {one.target} ({one.kind})" for one in found.upward] + [""]
    for circle in found.cycles:
        rooms = sorted({room for pair in circle for room in pair})
        out += [f"A cycle of {len(rooms)}: {', '.join(rooms)}"]
        for (source, target), several in circle.items():
            places = ", ".join(one.where + (" (lazy)" if one.kind == "lazy" else "") for one in several)
            out += [f"  {source} -> {target}: {places}"]
        out += [""]
    long = [d for d in found.signatures if d.parameters > BARS["longest_signature"]] or found.signatures[:1]
    out += ["Longest signatures:", *(f"  {d.parameters} {d}" for d in long), ""]
    long = [d for d in found.bodies if d.lines > BARS["longest_body"]] or found.bodies[:1]
    out += ["Longest bodies:", *(f"  {d.lines} {d}" for d in long), ""]
    if found.undocumented:
        out += ["Public, without a docstring:", *(f"  {d}" for d in found.undocumented), ""]
    for name, figure in found.figures().items():
        bar = f" (at most {BARS[name]})" if name in BARS else ""
        out += [f"{name.replace('_', ' '):32} {figure}{bar}{', not held' if name in found.broken() else ''}"]
    return out


def any_by_package(found: Structure) -> dict[str, list[Definition]]:
    """The public functions annotated Any, by the top folder that they are in."""
    tops = Counter(module.path.partition("/")[0] for module in found.modules.values())
    return {top: [d for d in found.any if d.path.startswith(top + "/")] for top in sorted(tops)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    found = measure(parser.parse_args().root)
    print(*lines(found), sep="\n", flush=True)

    from benchmarks.report import finish  # last: it loads torch, and the sources are read without

    broken, figures = found.broken(), found.figures()
    finish("structure", len(broken), "bars not held", 0, not broken, [], broken=broken, bars=BARS, **figures)


if __name__ == "__main__":
    main()
