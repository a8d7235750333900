"""The functions and classes of the sources: how long they are, what is documented, what is annotated Any."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from benchmarks.import_graph import Module

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """A function, a class or a method.

    name: dotted inside its file. public: no name on the way to it, the module's included, starts with "_".
    local: it stands inside a function. method: it stands right inside a class.
    """

    node: Function | ast.ClassDef
    name: str
    path: str
    public: bool
    local: bool
    method: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.node.lineno} {self.name}"

    @cached_property
    def decorators(self) -> list[str]:
        """The last name of each decorator: "command" of `@click.command("list")`."""
        bare = [d.func if isinstance(d, ast.Call) else d for d in self.node.decorator_list]
        return [getattr(d, "attr", getattr(d, "id", "")) for d in bare]

    @property
    def is_command(self) -> bool:
        """Whether click calls it: its parameters are options, which have help of their own."""
        return bool({"command", "group"} & set(self.decorators))

    @property
    def documented(self) -> bool:
        """Whether it says what it does: a docstring, or a command's help=."""
        helped = any(
            keyword.arg == "help"
            for decorator in self.node.decorator_list
            if isinstance(decorator, ast.Call)
            for keyword in decorator.keywords
        )
        return ast.get_docstring(self.node) is not None or (self.is_command and helped)

    @property
    def is_dunder(self) -> bool:
        """Whether Python gives it its meaning: `__init__`, `__len__`."""
        return self.node.name.startswith("__") and self.node.name.endswith("__")

    @property
    def repeats(self) -> bool:
        """Whether another definition of that name carries the docstring: a setter, an overload."""
        return bool({"overload", "setter", "deleter"} & set(self.decorators))

    @property
    def parameters(self) -> int:
        """How many parameters a function takes: *args and **kwargs are one each, self and cls are none."""
        if isinstance(self.node, ast.ClassDef):
            return 0
        of = self.node.args
        count = len(of.posonlyargs) + len(of.args) + len(of.kwonlyargs) + bool(of.vararg) + bool(of.kwarg)
        return count - (self.method and "staticmethod" not in self.decorators)

    @property
    def lines(self) -> int:
        """The lines of a function's body, from the first statement after the docstring to the last."""
        if isinstance(self.node, ast.ClassDef):
            return 0
        body = self.node.body[1:] if ast.get_docstring(self.node, clean=False) is not None else self.node.body
        if not body:
            return 0
        first = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", []))])
        return (self.node.end_lineno or first) - first + 1

    @property
    def takes_any(self) -> bool:
        """Whether a parameter or the result of a function is annotated Any, or `Any | None`."""
        if isinstance(self.node, ast.ClassDef):
            return False
        of = self.node.args
        every = [*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg]
        return any(map(_is_any, [*(a.annotation for a in every if a), self.node.returns]))


def definitions(modules: Iterable[Module]) -> list[Definition]:
    """Every function, class and method, in the order of the files."""
    return [
        found for module in modules for found in _below(module.tree, module, "", public=_is_open(module.name))
    ]


def undocumented(found: Iterable[Definition]) -> list[Definition]:
    """What a user may call and nothing is said about; dunder methods are left out."""
    return [d for d in found if d.public and not (d.local or d.is_dunder or d.repeats or d.documented)]


def annotated_any(found: Iterable[Definition]) -> list[Definition]:
    """The public functions with a parameter or a result that a type checker cannot check."""
    return [d for d in found if d.public and not d.local and d.takes_any]


def _below(
    node: ast.AST, module: Module, inside: str, *, public: bool, local: bool = False, method: bool = False
) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _below(child, module, inside, public=public, local=local, method=method)
            continue
        is_class = isinstance(child, ast.ClassDef)
        name = f"{inside}.{child.name}" if inside else child.name
        shown = public and (_is_open(child.name) or (child.name.startswith("__") and not is_class))
        yield Definition(child, name, module.path, shown, local, method and not is_class)
        yield from _below(child, module, name, public=shown, local=local or not is_class, method=is_class)


def _is_open(name: str) -> bool:
    """Whether no part of a dotted name is private."""
    return not any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _is_any(annotation: ast.expr | None) -> bool:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _is_any(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        return _is_any(annotation.left) or _is_any(annotation.right)
    if isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", None) in (
        "Optional",
        "Union",
    ):
        return any(map(_is_any, getattr(annotation.slice, "elts", [annotation.slice])))
    return getattr(annotation, "id", None) == "Any" or getattr(annotation, "attr", None) == "Any"
