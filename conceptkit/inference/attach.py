"""Concepts living on a diffusers pipeline: their tokens, their delta, and their names as words in prompts."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

from conceptkit.base import pipeline
from conceptkit.base.added_tokens import WiderTable, add_tokens
from conceptkit.base.architectures import denoiser_of
from conceptkit.base.text_features import encoders
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import rank_gates
from conceptkit.errors import ConceptError, NoEffect
from conceptkit.inference import attach_steps
from conceptkit.inference.attach_request import (
    AttachOptions,
    AttachRequest,
    Found,
    at_weights,
    exchanged,
    find_concepts,
    reopened,
)
from conceptkit.inference.confined_drawing import ConfinedDrawing
from conceptkit.inference.encode_prompt_hook import hook_encode_prompt
from conceptkit.inference.gated_lora import gate_lora
from conceptkit.inference.installed_delta import InstalledDelta
from conceptkit.inference.prompt_length import cut_off, unread
from conceptkit.inference.save_guard import refuse_saving
from conceptkit.inference.split_prompt import clause_of_each, things
from conceptkit.renamed import renamed_arguments

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from conceptkit.inference.attention_masks import Where
    from conceptkit.inference.layout import Layout
    from conceptkit.merging.compose import Merge
    from conceptkit.merging.report import Report
    from conceptkit.registry.store import Registry


@dataclass(eq=False)
class Attachment:
    """What is on the pipeline; `detach`, or leaving a `with` block, restores the pipeline bit for bit.

    concept: the one that was attached, or the merge of several. report: of that merge.
    notice: one sentence when the concept was learned on a near relative of this base.
    side_by_side: whether a prompt of several concepts gives a wide picture, a window for each of them.
    isolate_concepts: whether in one frame each concept's words are encoded without the others.
    attached: whether all this is on the pipeline now.
    lock: held while concepts come and go, and by `draw`: whoever draws from several threads holds it too.
    """

    pipe: DiffusionPipeline
    concepts: tuple[str, ...]
    concept: Concept
    report: Report | None
    notice: str | None
    _undo: ExitStack
    _installed: InstalledDelta
    _request: AttachRequest
    _base: pipeline.Base
    _found: Found
    _strengths: dict[str, float]
    _drawing: ConfinedDrawing | None = None
    side_by_side: bool = False
    isolate_concepts: bool = False
    attached: bool = False
    lock: Any = field(default_factory=threading.RLock)

    def detach(self) -> None:
        """Take everything off; a second call does nothing."""
        with self.lock:
            try:
                self._undo.close()
            finally:
                self._installed.remove()

    def draw(self, *args: Any, strengths: Mapping[str, float] | None = None, **options: Any) -> Any:
        """Call the pipeline while nobody can swap or detach: for servers with threads.

        strengths: of concepts by name, for this one call; see `strengths`.
        """
        with self.lock:
            if strengths is None:
                return self.pipe(*args, **options)
            before = self.strengths
            self.strengths = strengths  # type: ignore[assignment]
            try:
                return self.pipe(*args, **options)
            finally:
                if self.attached:
                    self.strengths = before

    @property
    def layout(self) -> Layout | None:
        """Of the pictures that were drawn last; None where none was needed."""
        return self._drawing.layout if self._drawing else None

    def goes_with(self, pipe: DiffusionPipeline) -> None:
        """Another pipeline of the same parts lays pictures out as this one does, until all is taken off."""
        if self._drawing:
            self._drawing.hook(pipe)

    def clauses(self, prompt: str) -> dict[str, str]:
        """What each concept's window is told, by name, from left to right; {} where there are no windows."""
        return clause_of_each(prompt, self.concept.words) if self.side_by_side else {}

    def cut_off(self, prompt: str) -> list[str]:
        """A sentence for each concept that a prompt names behind the last token that is read of it."""
        return cut_off(self.pipe, prompt, self.concept.words, self.clauses(prompt).values())

    def unread(self, prompt: str, of: str = "prompt") -> list[str]:
        """A sentence for each part of a prompt that is behind the last token that is read; see `unread`."""
        parts = self.clauses(prompt).values() or [prompt]
        return [text for part in parts for text in unread(self.pipe, part, self.concept.words, of)]

    def swap(self, old: str, new: str | Concept | Merge) -> None:
        """Put `new` in the place of the concept that is called `old`; the others stay as they are.

        Waits for a `draw` that is under way. Raises UnknownConcept when there is no such concept on the
        pipeline, and whatever `attach` raises for `new`; then all is as it was before.
        """
        with self.lock:
            self._check_attached()
            request = exchanged(self._request, self.concepts, old, new)
            with self._exchanging():
                self._base = pipeline.refreshed(self._base)
                with reopened(request.registry) as registry:
                    after = find_concepts(replace(request, registry=registry), self._base)
                self._put(request, after)
                self._found, self._strengths = after, after.strengths
        if self.notice:
            warnings.warn(self.notice, stacklevel=2)

    @property
    def strengths(self) -> dict[str, float]:
        """How strongly each concept acts, by name; 1 is as it was learned.

            attachment.strengths = {"my_dog": 0.5}

        What is not named keeps its strength, and 0 leaves a concept out but for its token. No merge is made
        again, so that setting it takes milliseconds. Raises UnknownConcept, and BadRecipe for a merge by
        "svd" or "ties", which are not linear in the strength of each part, unless all change by one factor.
        """
        return dict(self._strengths)

    @strengths.setter
    def strengths(self, strengths: Mapping[str, float]) -> None:
        with self.lock:
            self._check_attached()
            wanted = {**self._strengths, **strengths}
            concept = self._found.at_strengths(wanted, self._base)
            request = at_weights(self._request, wanted)
            with self._exchanging():
                self._put(request, replace(self._found, concept=concept))
                self._strengths = wanted

    def _check_attached(self) -> None:
        if not self.attached:
            raise ConceptError("These concepts are no longer on the pipeline; attach them again first")

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        """The pipeline is bare inside of the block; where it fails all is as it was before."""
        before, found = self._request, Found(self.concept, self.report, self.notice)
        self._undo.close()
        try:
            yield
        except BaseException:
            self._put(before, found)
            raise

    def _put(self, request: AttachRequest, found: Found) -> None:
        """Everything onto a bare pipeline, or nothing."""
        try:
            self._put_on(request, found)
        except BaseException:
            self._installed.remove()
            raise

    def _put_on(self, request: AttachRequest, found: Found) -> None:
        concept = found.concept
        changes = any(all(factor.any() for factor in factors) for factors in concept.delta.values())
        if not changes and not concept.tokens:
            raise NoEffect(
                f"{concept.name} would change nothing: its delta is zero and it has no token; learn it again"
            )
        denoiser = denoiser_of(self.pipe)
        attach_steps.check_regions(self.pipe, request)
        with ExitStack() as undo:
            tokens = undo.enter_context(add_tokens(self.pipe, concept.tokens)) if concept.tokens else None
            reading = attach_steps.reading_of(self.pipe, concept, request)
            if reading:
                undo.callback(reading.listen(denoiser).remove)
            self._drawing = drawing = attach_steps.confined_drawing(self._base, concept, request, reading)
            if changes:
                idle = drawing.idle if drawing else bool
                attach_steps.install_delta(undo, self.pipe, self._installed, concept, reading, idle)
            else:
                self._installed.remove()
            where: Where | None = None
            if reading and concept.reference is not None:
                from conceptkit.inference import reference_attention

                undo.callback(
                    reference_attention.attend_to_reference(
                        self.pipe, concept.reference, reading, drawing.confinement if drawing else None
                    )
                )
            if reading and (request.masks or request.auto_regions) and attach_steps.looks_at_text(self.pipe):
                from conceptkit.inference import attention_masks

                where, back = (
                    attention_masks.separate(denoiser, reading)
                    if request.auto_regions
                    else attention_masks.confine(
                        denoiser, reading, request.masks, drawing.staged if drawing else bool
                    )
                )
                undo.callback(back)
            if reading and changes and (heard := rank_gates(concept)):
                gate_lora(self._installed.layers_on(denoiser), heard, reading, where)
            if drawing:
                undo.callback(drawing.install())
            windows = attach_steps.windows_of(self._base, concept, request)
            if windows:
                undo.callback(windows.open())
            apart = None if windows else attach_steps.encoding_apart(self._base, concept, request)
            self.concept, self.report, self.notice = concept, found.report, found.notice
            self.concepts, self._request = tuple(concept.words), request
            several = drawing is not None and len(things(concept.words)) > 1
            self.side_by_side = windows is not None
            self.isolate_concepts = apart is not None or (several and request.isolate_concepts is not False)
            undo.callback(hook_encode_prompt(self, concept.words, tokens, reading, windows, apart, drawing))
            undo.callback(refuse_saving(self.pipe, self.concepts or (concept.name,)))
            undo.callback(setattr, self, "attached", False)
            self.attached, self._undo = True, undo.pop_all()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


@renamed_arguments(
    how="merge_method", shared="padding_delta", separate="auto_regions", read_apart="isolate_concepts"
)
def attach(
    pipe: DiffusionPipeline,
    *concepts: str | Concept | Merge,
    registry: Registry | None = None,
    **options: Unpack[AttachOptions],
) -> Attachment:
    """Put concepts on a pipeline, several of them composed in one call.

        with attach(pipe, "my_dog:0.8", "moongate", regions=["my_dog=left"]):
            pipe("my_dog in front of a moongate").images[0].save("both.png")

    pipe: a diffusers pipeline, loaded.
    concepts: names in the registry, each with a strength if wanted; concepts; merges.
    registry: where names are looked up; None: the one of the user.
    options: merge_method, weights, padding_delta, regions, auto_regions, side_by_side, isolate_concepts,
        confine, detail; see `AttachRequest`.

    Whatever is done to the pipeline meanwhile, a drawing has the concepts whole or raises ConceptError, see
    `layer_check`; a pipeline of the same parts knows their tokens, and no names.
    Raises BaseMismatch on another base, BadRegion, NoEffect when nothing would change, ConceptError when the
    pipeline carries concepts already; whatever is raised, the pipeline is as it was.
    """
    request = AttachRequest(concepts, registry, **options)
    present = getattr(getattr(pipe, "encode_prompt", None), "attachment", None)
    if present is not None and present.attached:
        carried = ", ".join(present.concepts)
        raise ConceptError(
            f"This pipeline already carries {carried}; detach first, or attach all in one call"
        )
    if any(isinstance(encoder.get_input_embeddings(), WiderTable) for _, encoder in encoders(pipe)):
        raise ConceptError(
            "Another pipeline of the same parts carries concepts already; detach them there first, or attach "
            "all in one call"
        )
    here = pipeline.of(pipe)
    found = find_concepts(request, here)
    installed = InstalledDelta(pipe)
    attachment = Attachment(
        pipe, (), found.concept, None, None, ExitStack(), installed, request, here, found, found.strengths
    )
    attachment._put(request, found)
    if attachment.notice:
        warnings.warn(attachment.notice, stacklevel=2)
    return attachment
