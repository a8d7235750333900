"""Concepts living on a diffusers pipeline: their tokens, their delta, and their names as words in prompts."""

import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptkit import base, prompts
from conceptkit.concept import Concept, Delta, read
from conceptkit.errors import BadRegion, ConceptError, NoEffect, UnknownConcept
from conceptkit.kv_delta import ADAPTER, install_on, uninstall_from
from conceptkit.merging.effects import only
from conceptkit.merging.request import HOW, SHARED, check_one_way_apart, split_weight
from conceptkit.merging.wide import voices
from conceptkit.steering import regions
from conceptkit.steering.apart import Apart
from conceptkit.steering.clauses import clause_of_each, things
from conceptkit.steering.reading import Reading
from conceptkit.steering.spelling import read_names
from conceptkit.steering.voices import listen
from conceptkit.steering.windows import Windows, can_have_windows
from conceptkit.tokens import add_tokens

if TYPE_CHECKING:
    from conceptkit.merge import Merge, Report
    from conceptkit.registry.store import Registry
    from conceptkit.steering.separation import Where


@dataclass(frozen=True, eq=False)
class _Order:
    """What was asked for: who, how strong, merged in which way, kept apart in which way."""

    concepts: tuple[Any, ...]
    weights: tuple[float, ...] | None
    how: str
    shared: str
    regions: Mapping[str, np.ndarray]
    separate: bool
    side_by_side: bool | None
    read_apart: bool | None
    registry: "Registry | None"


@dataclass(frozen=True, eq=False)
class _Found:
    """What an order comes to on a base: one concept, and the report of the merge that it is."""

    concept: Concept
    report: "Report | None"
    notice: str | None


@dataclass(eq=False)
class Attachment:
    """What is on the pipeline; `detach`, or leaving a `with` block, restores the pipeline bit for bit.

    concept: the one that was attached, or the merge of several. report: of that merge.
    notice: one sentence when the concept was learned on a near relative of this base.
    side_by_side: whether a prompt of several concepts gives a wide picture, a window for each of them.
    read_apart: whether in one frame each concept's words are read without the others.
    lock: held while concepts come and go, and by `draw`: whoever draws from several threads holds it too.
    """

    pipe: Any
    concepts: tuple[str, ...]
    concept: Concept
    report: "Report | None"
    notice: str | None
    _undo: ExitStack
    _order: _Order
    _base: base.Base
    side_by_side: bool = False
    read_apart: bool = False
    lock: Any = field(default_factory=threading.RLock)

    def detach(self) -> None:
        """Take everything off; a second call does nothing."""
        with self.lock:
            self._undo.close()

    def draw(self, *args: Any, **options: Any) -> Any:
        """Call the pipeline while nobody can swap or detach: for servers with threads."""
        with self.lock:
            return self.pipe(*args, **options)

    def clauses(self, prompt: str) -> dict[str, str]:
        """What each concept's window is told, by name, from left to right; {} where there are no windows."""
        return clause_of_each(prompt, self.concept.words) if self.side_by_side else {}

    def swap(self, old: str, new: "str | Concept | Merge") -> None:
        """Put `new` in the place of the concept that is called `old`; the others stay as they are.

        Waits for a `draw` that is under way. Raises UnknownConcept when there is no such concept on the
        pipeline, and whatever `attach` raises for `new`; then all is as it was before.
        """
        with self.lock:
            if getattr(self.pipe.encode_prompt, "attachment", None) is not self:
                raise ConceptError("These concepts are no longer on the pipeline; attach them again first")
            order = _exchanged(self._order, self.concepts, old, new)
            before, found = self._order, _Found(self.concept, self.report, self.notice)
            self._undo.close()
            try:
                with _reopened(order.registry) as registry:
                    after = _find(replace(order, registry=registry), self._base)
                self._put(order, after)
            except BaseException:
                self._put(before, found)
                raise
        if self.notice:
            warnings.warn(self.notice, stacklevel=2)

    def _put(self, order: _Order, found: _Found) -> None:
        """Everything onto a bare pipeline, or nothing."""
        concept = found.concept
        changes = any(all(factor.any() for factor in factors) for factors in concept.delta.values())
        if not changes and not concept.tokens:
            raise NoEffect(
                f"{concept.name} would change nothing: its delta is zero and it has no token; learn it again"
            )
        unet = self.pipe.unet
        with ExitStack() as undo:
            tokens = undo.enter_context(add_tokens(self.pipe, concept.tokens)) if concept.tokens else None
            reading = _reading(self.pipe, concept, order)
            if reading:
                undo.callback(reading.listen(unet).remove)
            if changes:
                _install(undo, self.pipe, concept, reading)
            where: Where | None = None
            if reading and concept.reference is not None:
                from conceptkit.vico import looking

                undo.callback(looking.look_at(self.pipe, concept.reference, reading))
            if reading and (order.regions or order.separate):
                from conceptkit.steering import separation

                where, back = (
                    separation.separate(unet, reading)
                    if order.separate
                    else separation.confine(unet, reading, order.regions)
                )
                undo.callback(back)
            if reading and changes and (heard := voices(concept)):
                listen(unet, heard, reading, where)
            windows = _windows(self._base, concept, order)
            if windows:
                undo.callback(windows.open())
            apart = None if windows else _apart(self._base, concept, order)
            self.concept, self.report, self.notice = concept, found.report, found.notice
            self.concepts, self._order = tuple(concept.words), order
            self.side_by_side, self.read_apart = windows is not None, apart is not None
            undo.callback(read_names(self, concept.words, tokens, reading, windows, apart))
            self._undo = undo.pop_all()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def attach(
    pipe: Any,
    *concepts: "str | Concept | Merge",
    registry: "Registry | None" = None,
    how: str = HOW,
    weights: Sequence[float] | None = None,
    shared: str = SHARED[0],
    regions: Sequence[str] = (),
    separate: bool = False,
    side_by_side: bool | None = None,
    read_apart: bool | None = None,
) -> Attachment:
    """Put concepts on a pipeline, several of them composed in one call.

        with attach(pipe, "my_dog:0.8", "moongate", regions=["my_dog=left"]):
            pipe("my_dog in front of a moongate").images[0].save("both.png")

    Strings are names in the registry, with a strength if wanted; `weights`, `how` and `shared` are those of
    `compose`. `regions` keep concepts in parts of the picture, see `regions.read`; `separate` lets them split
    it by where they begin to appear; `side_by_side` gives each thing that a prompt names a window in a wide
    picture, by default on bases that cannot draw two things in one frame; the base's own size counts as none
    given. `read_apart`: in one frame each concept's words are read without the other concepts in the prompt
    (`steering.apart`), by default on storybook.

    Raises BaseMismatch on another base, BadRegion, NoEffect when nothing would change, ConceptError when the
    pipeline carries concepts already; whatever is raised, the pipeline is as it was.
    """
    if not concepts:
        raise ConceptError("There is nothing to attach; name at least one concept")
    if present := getattr(getattr(pipe, "encode_prompt", None), "attachment", None):
        carried = ", ".join(present.concepts)
        raise ConceptError(
            f"This pipeline already carries {carried}; detach first, or attach all in one call"
        )
    here = base.of(pipe)
    order = _order(concepts, weights, how, shared, regions, separate, side_by_side, read_apart, registry)
    found = _find(order, here)
    attachment = Attachment(pipe, (), found.concept, None, None, ExitStack(), order, here)
    attachment._put(order, found)
    if attachment.notice:
        warnings.warn(attachment.notice, stacklevel=2)
    return attachment


def _order(
    concepts: tuple[Any, ...],
    weights: Sequence[float] | None,
    how: str,
    shared: str,
    places: Sequence[str],
    separate: bool,
    side_by_side: bool | None,
    read_apart: bool | None,
    registry: "Registry | None",
) -> _Order:
    check_one_way_apart(places, separate, side_by_side)
    masks = regions.read(places)
    strengths = None if weights is None else tuple(weights)
    return _Order(concepts, strengths, how, shared, masks, separate, side_by_side, read_apart, registry)


def _find(order: _Order, here: base.Base) -> _Found:
    """One concept as it is, several as their merge, with what a user should know. Raises BadRegion."""
    concept, report = _resolve(order, here)
    regions.check(order.regions, tuple(concept.words))
    if concept.reference is not None and (order.regions or order.separate):
        raise BadRegion(
            f"{concept.name} looks at its reference photo, which has no regions; draw it without them, "
            "or learn it again with --method custom"
        )
    notices = (
        base.check_fits(concept.base, here, concept.name, concept.base_name),
        *getattr(report, "notices", ()),
    )
    return _Found(concept, report, "; ".join(text for text in notices if text) or None)


def _resolve(order: _Order, here: base.Base) -> "tuple[Concept, Report | None]":
    (first, *more) = order.concepts
    weighted = order.weights is not None or (isinstance(first, str) and split_weight(first)[1] != 1)
    if more or weighted or order.how == "routed":
        from conceptkit.merge import compose

        merge = compose(
            *(getattr(c, "concept", c) for c in order.concepts),
            base=here,
            registry=order.registry,
            weights=order.weights,
            how=order.how,
            shared=order.shared,
        )
        return merge.concept, merge.report
    if isinstance(first, str):
        from conceptkit.registry.store import Registry

        return read(order.registry or Registry(), split_weight(first)[0]), None
    return getattr(first, "concept", first), getattr(first, "report", None)


def _exchanged(order: _Order, present: Sequence[str], old: str, new: Any) -> _Order:
    """The order with one concept for another; a merge that was attached is taken apart again."""
    (first, *more) = order.concepts
    if not more and len(getattr(first, "parts", ())) > 1:
        whole = order.weights[0] if order.weights else 1.0
        strengths = tuple(whole * part.weight for part in first.parts)
        parts = tuple(part.concept for part in first.parts)
        shared = first.concept.recipe.get("shared", order.shared)
        order = replace(order, concepts=parts, weights=strengths, how=first.report.how, shared=shared)
    names = [
        split_weight(c)[0].partition("@")[0] if isinstance(c, str) else getattr(c, "concept", c).name
        for c in order.concepts
    ]
    if old not in names:
        listed = ", ".join(names)
        raise UnknownConcept(
            f"{old} came as part of {listed}; attach the parts by name to swap one of them"
            if old in present
            else f"There is no {old} to swap; attached are {listed}"
        )
    at = names.index(old)
    weights = order.weights
    if weights is not None:
        given = split_weight(new) if isinstance(new, str) else (new, weights[at])
        weights = (*weights[:at], given[1], *weights[at + 1 :])
        new = given[0]
    name = (
        split_weight(new)[0].partition("@")[0] if isinstance(new, str) else getattr(new, "concept", new).name
    )
    places = {name if key == old else key: mask for key, mask in order.regions.items()}
    concepts = (*order.concepts[:at], new, *order.concepts[at + 1 :])
    return replace(order, concepts=concepts, weights=weights, regions=places)


def _reopened(registry: "Registry | None") -> "AbstractContextManager[Registry | None]":
    """The same registry for this thread: its index can only be read by the thread that opened it."""
    return nullcontext() if registry is None else type(registry)(registry.home)


def _reading(pipe: Any, concept: Concept, order: _Order) -> Reading | None:
    """Whoever needs to know whose words are where; the concept's tokens are on the pipeline."""
    if concept.reference is not None:
        return Reading(pipe, {name: list(concept.tokens) for name in concept.words})
    strict = concept.recipe.get("method") == "routed" or bool(order.regions) or order.separate
    if not strict and not voices(concept):
        return None
    spelt = {name: [text, *prompts.TOKEN.findall(text)] for name, text in concept.words.items()}
    return Reading(pipe, spelt, strict)


def _windows(here: base.Base, concept: Concept, order: _Order) -> Windows | None:
    """A window for each of several concepts, where that was ordered, or nothing was and it suits the base."""
    wanted, able = order.side_by_side, can_have_windows(here.pipe)
    if wanted and not able:
        raise BadRegion(
            f"A {type(here.pipe).__name__} draws on a picture that it is given, which has no windows; leave "
            "side_by_side out, or use a text-to-image pipeline"
        )
    if wanted is None:
        wanted = able and here.side_by_side and not order.regions and not order.separate
    return Windows(here.pipe, concept.words) if wanted and len(things(concept.words)) > 1 else None


def _apart(here: base.Base, concept: Concept, order: _Order) -> Apart | None:
    """Each concept's words read without the others, where that was ordered, or suits the base."""
    wanted = here.reads_apart if order.read_apart is None else order.read_apart
    return Apart(here.pipe, concept.words) if wanted and len(things(concept.words)) > 1 else None


def _install(undo: ExitStack, pipe: Any, concept: Concept, reading: Reading | None) -> None:
    """The delta, as adapters on the UNet and the text encoders; a routed one's keys and values as routes."""
    delta: Delta = concept.delta
    unet = pipe.unet
    if reading and concept.recipe.get("method") == "routed":
        from conceptkit.steering.routing import install_routes

        maps = base.kv_maps(unet)
        undo.callback(install_routes(unet, only(delta, maps), concept.recipe, reading))
        delta = {name: factors for name, factors in delta.items() if name not in maps}
    if delta:
        install_on(pipe, delta)
        undo.callback(uninstall_from, pipe, ADAPTER)
