"""The merge methods: a table that other packages can add rows to, and that is read without torch.

    register_merge_method(MergeMethod("halves", "half of each", "my_package.halves:merge"))

or, in the other package's pyproject.toml, an entry point that is a `MergeMethod`:

    [project.entry-points."conceptkit.merge_methods"]
    halves = "my_package.halves:HALVES"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from conceptkit.errors import ConceptError
from conceptkit.extension_table import ExtensionTable

if TYPE_CHECKING:
    from conceptkit.merging.methods.base import MergeContext, MergeResult

STRENGTHS = "strengths"
"""Refused by a method that has no use for a part at another strength than 1."""
CROWDS = "crowds"
"""Refused by a method that puts all parts into one delta: more of them than the base's features have
directions."""
REFUSABLE = (STRENGTHS, CROWDS)
EACH, ALL = "each", "all"
"""What a method's result is linear in: the strength of each part, or one factor of all of them alone."""


@dataclass(frozen=True)
class MergeMethod:
    """One way of making one concept of several.

    name: as users write it. help: one line for them.
    function: takes a `MergeContext` and returns a `MergeResult`; or where it is, "module:function", so that
        torch is imported on first use.
    refuses: of `REFUSABLE`, what is an error before the function is called.
    takes_one: one concept alone goes through the function too; else it stays as it is.
    strengths: EACH or ALL; what is linear in them can be drawn at others without a new merge.
    repeatable: the result is of the parts, their strengths and the base alone, so that it may be kept.

    Raises ConceptError for a refusal or a kind of strengths that nobody knows.
    """

    name: str
    help: str
    function: Callable[[MergeContext], MergeResult] | str
    refuses: frozenset[str] = field(default=frozenset({CROWDS}))
    takes_one: bool = False
    strengths: str = ALL
    repeatable: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.refuses) - set(REFUSABLE)):
            raise ConceptError(
                f"The merge method {self.name!r} refuses {unknown[0]!r}; choose of {', '.join(REFUSABLE)}"
            )
        if self.strengths not in (EACH, ALL):
            raise ConceptError(
                f"The merge method {self.name!r} is linear in {self.strengths!r}; choose of {EACH}, {ALL}"
            )

    def merge(self, context: MergeContext) -> MergeResult:
        """What the method makes of the parts."""
        function = self.function
        if isinstance(function, str):
            module, _, name = function.partition(":")
            function = getattr(import_module(module), name)
        return function(context)


MERGE_METHODS: ExtensionTable[MergeMethod] = ExtensionTable("merge method", "conceptkit.merge_methods")


def merge_method_of(name: str) -> MergeMethod:
    """The row of that name. Raises ConceptError when there is none, or when a package registered no row."""
    method = MERGE_METHODS.find(name)
    if not isinstance(method, MergeMethod):
        raise ConceptError(f"The merge method {name!r} is no MergeMethod; mend or uninstall its package")
    return method


def register_merge_method(method: MergeMethod) -> MergeMethod:
    """Add a row. Raises ConceptError when there is another of that name."""
    return MERGE_METHODS.register(method.name, method)


_HERE = "conceptkit.merging.methods"
for _row in (
    MergeMethod(
        "regmean",
        "least squares over everybody's prompts and ordinary captions, each gives way a little",
        f"{_HERE}.regmean:merge_regmean",
        strengths=EACH,
        repeatable=True,
    ),
    MergeMethod(
        "closed-form",
        "each is exact on its own words, ordinary captions move least beside that",
        f"{_HERE}.closed_form:merge_closed_form",
        strengths=EACH,
        repeatable=True,
    ),
    MergeMethod(
        "routed",
        "each token reads its own concept's delta alone",
        f"{_HERE}.routed:merge_routed",
        refuses=frozenset(),
        takes_one=True,
        strengths=EACH,
        repeatable=True,
    ),
    MergeMethod(
        "sum", "the deltas added up", f"{_HERE}.baselines:merge_sum", strengths=EACH, repeatable=True
    ),
    MergeMethod("linear", "their mean", f"{_HERE}.baselines:merge_linear", strengths=EACH, repeatable=True),
    MergeMethod(
        "svd",
        "their sum, cut to the largest of their ranks",
        f"{_HERE}.baselines:merge_svd",
        repeatable=True,
    ),
    MergeMethod(
        "ties",
        "TIES: the strongest entries, by majority of signs",
        f"{_HERE}.baselines:merge_ties",
        repeatable=True,
    ),
    MergeMethod(
        "joint",
        "a concept that was learned of all of them together",
        f"{_HERE}.joint:merge_joint",
        refuses=frozenset({STRENGTHS, CROWDS}),
    ),
):
    register_merge_method(_row)
