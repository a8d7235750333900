"""A pipeline's call in two stages: the base lays the picture out, then concepts are drawn into it."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conceptkit.base.architectures import architecture_of, denoiser_of
from conceptkit.errors import BadPrompt, BadRegion
from conceptkit.inference.call_hook import Call, called_with, hook_call, images_per_prompt
from conceptkit.inference.call_texts import Unreadable
from conceptkit.inference.confinement import Confinement
from conceptkit.inference.detail import DetailPass, hindrance
from conceptkit.inference.drawing_stage import Enough, Stage
from conceptkit.inference.layout import (
    Layout,
    LayoutWarning,
    check_room,
    lay_out,
)
from conceptkit.inference.layout_attention import Watch
from conceptkit.inference.layout_cache import KnownLayout, call_key, keep_layout, known_layout
from conceptkit.inference.layout_noise import NoiseSearch, copied
from conceptkit.inference.multidiffusion import can_have_windows
from conceptkit.inference.prompt_scene import PromptScene, read_scene

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TRIES = 3
"""Layouts at most, each of another noise, until one shows every thing."""
CHECKED_AT = 0.4
"""Share of the steps after which a layout that lacks something is given up."""
REPLAYED, LAID_OUT = 0.16, 0.76
"""Shares of the steps up to which the picture is still the layout, and up to which the layout is drawn. The
first say where things are, the next which colours they have; after the last the rest of the picture hardly
changes."""
SPARSE = 1 / 2
"""Share of the steps up to which concepts are computed at every second step, see `Stage.carried`."""
DROPPED = ("callback_on_step_end", "callback", "callback_steps")


class ConfinedDrawing:
    """What stands around a pipeline's call: a layout first, where a prompt names things to be kept apart.

    given: masks (G, G) of the concepts whose place the user has said. nouns: plain class nouns that are
    things too. always: also for a prompt of one thing. detail: draws the parts at full size, on pipelines
    that begin with noise alone.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        confinement: Confinement,
        words: Mapping[str, str],
        given: Mapping[str, np.ndarray],
        nouns: Collection[str] = (),
        always: bool = False,
        detail: DetailPass | None = None,
    ) -> None:
        self._pipe, self.confinement, self._words = pipe, confinement, words
        self._given, self._nouns, self._always, self._detail = given, nouns, always, detail
        self._undo: list[Callable[[], None]] = []
        self.layout: Layout | None = None

    def install(self) -> Callable[[], None]:
        """Onto the pipeline and its denoiser; gives the way back."""
        self._undo.append(self.confinement.install(denoiser_of(self._pipe)))
        if self._detail:
            self._undo.append(self._detail.install(denoiser_of(self._pipe)))
        self.hook(self._pipe)

        def take_off() -> None:
            while self._undo:
                self._undo.pop()()

        return take_off

    def hook(self, pipe: DiffusionPipeline) -> None:
        """Stand around the calls of a pipeline, of this one's parts."""
        self._undo.append(hook_call(pipe, functools.partial(self.around, pipe)))

    def idle(self) -> bool:
        """Whether the call of the denoiser that is under way computes nothing."""
        return self.confinement.replayed()

    def staged(self) -> bool:
        """Whether a drawing in stages is under way in this thread."""
        return self.confinement.stage is not None or bool(self._detail and self._detail.active)

    def around(self, pipe: DiffusionPipeline, call: Call, bound: inspect.BoundArguments) -> Any:
        """Make the call, or the two that it takes. Raises BadPrompt and BadRegion, see `check_room`."""
        if self.confinement.stage is not None:
            return call(*bound.args, **bound.kwargs)
        self.layout = None
        if bound.arguments.get("prompt_embeds") is not None:
            warnings.warn(
                "prompt_embeds do not say which words they are, so no concept is confined to its part of the "
                "picture; give the prompt as text",
                LayoutWarning,
                stacklevel=4,
            )
        scenes = self._scenes(bound.arguments.get("prompt"))
        if not scenes:
            return call(*bound.args, **bound.kwargs)
        for scene in scenes:
            check_room(scene, self._given)
        try:
            layout = self._laid_out(pipe, call, bound, scenes)
        except Unreadable:
            self._refuse(pipe)
            return call(*bound.args, **bound.kwargs)
        self.layout = layout
        self._warn(layout)
        stage = Stage(
            scenes,
            layout,
            first=round(REPLAYED * layout.steps),
            sparse=round(SPARSE * layout.steps),
            images=images_per_prompt(bound),
        )
        details = (
            self._detail.redraw(call, bound, layout) if self._detail and layout.latents is not None else None
        )
        if details:
            stage.first = layout.steps  # what is left to draw is the base's own
            self.layout = layout.redrawn(details.inside, details.lost)
        elif self._detail and (why := hindrance(pipe, scenes, bound.arguments)):
            self.layout = layout.with_remark(f"Concepts are drawn in the frame itself: {why}.")
        more = {} if layout.noise is None else {"latents": layout.noise}
        with self.confinement.staged(stage):
            drawn = called_with(call, bound, more)
        return details.put_into(drawn) if details else drawn

    def _detailed(
        self, pipe: DiffusionPipeline, bound: inspect.BoundArguments, scenes: Sequence[PromptScene]
    ) -> bool:
        """Whether each concept of a call is drawn by itself; a kept layout is of one kind or the other."""
        return self._detail is not None and not hindrance(pipe, scenes, bound.arguments)

    def _refuse(self, pipe: DiffusionPipeline) -> None:
        """Raises BadRegion where confinement was ordered; says so where it is only the default."""
        why = (
            f"How a {type(pipe).__name__} gives its denoiser prompt and picture is unknown, so nothing can "
            "be confined there"
        )
        if self._always or self._given:
            raise BadRegion(f"{why}; leave confine and regions out")
        warnings.warn(f"{why}, and each concept acts everywhere", LayoutWarning, stacklevel=5)

    def _scenes(self, prompt: str | Sequence[str] | None) -> tuple[PromptScene, ...]:
        """Of each prompt, or none where the call goes on as it is."""
        texts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        scenes = tuple(read_scene(text, self._words, self._nouns) for text in texts)
        wanting = [self._wants(scene) for scene in scenes]
        if any(wanting) and not all(wanting):
            raise BadPrompt(
                f"{texts[wanting.index(False)][:60]!r} has nothing to keep apart and other prompts of this "
                "call have; draw them in calls of their own"
            )
        return scenes if any(wanting) else ()

    def _wants(self, scene: PromptScene) -> bool:
        named = scene.names
        several = len(scene.things) > 1 or bool(scene.styles) or any(t.plural for t in scene.things)
        return bool(named) and (self._always or several or any(name in self._given for name in named))

    # The layout

    def _laid_out(
        self,
        pipe: DiffusionPipeline,
        call: Call,
        bound: inspect.BoundArguments,
        scenes: tuple[PromptScene, ...],
    ) -> Layout:
        """The base's own drawing of the class nouns, of another noise where that of the call lacks things."""
        key = call_key(pipe, bound, scenes, self._given, (*DROPPED, "output_type", "return_dict"))
        key = key and (key, self._detailed(pipe, bound, scenes))
        known = None if key is None else known_layout(denoiser_of(pipe), key)
        search = NoiseSearch(bound, architecture_of(pipe))
        found = self._drawn(pipe, call, bound, scenes, search.noise, not search.able, known)
        if known is not None and found is known.layout:
            return found
        first = found.predictions[0]
        for attempt in range(TRIES):
            if found.usable:
                break
            search.note(attempt, found)
            last = attempt == TRIES - 1
            noise = search.best() if last else search.noise
            found = self._drawn(pipe, call, bound, scenes, noise, last or not search.able)
        found = search.named(found)
        keep_layout(denoiser_of(pipe), key, KnownLayout(found, first))
        return found

    def _drawn(
        self,
        pipe: DiffusionPipeline,
        call: Call,
        bound: inspect.BoundArguments,
        scenes: tuple[PromptScene, ...],
        noise: Tensor | None,
        whole: bool,
        known: KnownLayout | None = None,
    ) -> Layout:
        """One drawing of the class nouns, as far as it is needed.

        Not usable when it was given up early, since it lacks things and need not be `whole`. known: the
        layout of an earlier call like this one, which is taken when it begins alike.
        """
        detailed = self._detailed(pipe, bound, scenes)
        stage = Stage(scenes, images=images_per_prompt(bound), spread=detailed)
        whole_layout = detailed or self.confinement.kind.whole
        begun: list[Tensor] = []

        def look(stage: Stage) -> None:
            if not begun and stage.sample is not None:
                begun.append(stage.sample.clone())
            total = len(pipe.scheduler.timesteps)
            if stage.calls == 1 and known is not None and known.begins_with(stage.predictions[0]):
                raise Enough(known.layout)
            if stage.calls >= LAID_OUT * total and not whole_layout:
                raise Enough(self._read(stage, noise, total))
            due = stage.calls >= max(1, round(CHECKED_AT * total))
            if due and not whole and not stage.checked and stage.watch and stage.watch.ready:
                stage.checked = True
                early = self._read(stage, noise, total)
                if not early.complete:
                    raise Enough(replace(early, usable=False))

        stage.look = look
        more = {
            "output_type": "latent",
            "return_dict": True,
            "generator": copied(bound.arguments.get("generator")),
            **({} if noise is None else {"latents": noise}),
        }
        denoiser: Any = denoiser_of(pipe)
        processors = getattr(denoiser, "attn_processors", None)
        devices = [pipe.device] if pipe.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.confinement.staged(stage):
            try:
                drawn = called_with(call, bound, more, DROPPED)
            except Enough as enough:
                if processors is not None:  # a guidance that was broken off left its own
                    denoiser.set_attn_processor(processors)
                return enough.layout
        found = self._read(stage, noise, stage.calls)
        usable = whole or stage.checked or found.complete
        ends = {"begun": begun[0], "latents": drawn.images} if detailed else {}
        return replace(found, usable=usable, **ends)

    def _read(self, stage: Stage, noise: Tensor | None, total: int) -> Layout:
        """Where things are in each picture, from what was watched so far of `total` steps."""
        assert stage.watch is not None and stage.sample is not None
        seen = stage.watch.maps(stage.calls)
        pictures = tuple(
            lay_out(
                stage.scene(p),
                seen[p, : len(stage.scene(p).things)],
                stage.sample[p].float().cpu(),
                self._given,
            )
            for p in range(stage.pictures)
        )
        if stage.spread and isinstance(stage.watch, Watch):
            outlining = stage.watch.outlining(stage.calls).cpu()
            pictures = tuple(
                replace(one, seen=maps[: len(one.things)])
                for one, maps in zip(pictures, outlining, strict=True)
            )
        channels, windows = stage.sample.shape[1], can_have_windows(self._pipe)
        if not windows:
            pictures = tuple(
                replace(one, things=tuple(replace(thing, windows=False) for thing in one.things))
                for one in pictures
            )
        return Layout(pictures, tuple(stage.predictions), total, noise, channels=channels)

    def _warn(self, layout: Layout) -> None:
        """A sentence for each thing that is not where the prompt has it."""
        said = [
            sentence
            for picture in layout.pictures
            for sentence in (*(t.text() for t in picture.things if not t.found), *picture.notes)
        ]
        for sentence in dict.fromkeys(said):
            warnings.warn(sentence, LayoutWarning, stacklevel=4)
