"""Concepts in one frame: the base says where things stand, each concept what its own looks like, there alone.

The base draws the prompt with class nouns in place of names, from the same noise; attention to the nouns
becomes masks (`layout_masks`). Then the picture is drawn: in its mask each concept's keys, values and LoRA
act on the prompt that names it alone, everything else is what the base predicted for the class nouns, cell
by cell. So regions are those of FreeFuse (2510.23515) and LoRAShop (2505.23758), and outside of them the
picture is the base's own.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.base.text_features import encoders, spell
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import rank_gates, reads_text
from conceptkit.errors import ConceptError
from conceptkit.inference.attention_masks import cells_inside, hidden_words, level
from conceptkit.inference.layer_check import layers_of
from conceptkit.inference.layout import Layout
from conceptkit.inference.layout_attention import AttentionKind, Watch, watch_hooks
from conceptkit.inference.method_override import override
from conceptkit.inference.prompt_scene import PromptScene, with_concept
from conceptkit.inference.token_owners import TokenOwners, UNetCall, both_halves
from conceptkit.tuners.inject import ADAPTER
from conceptkit.tuners.kv_delta import KVDeltaLinear

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PROMPTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
SAID = PROMPTS[:2]


class Enough(Exception):
    """A layout need not be drawn any further."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout


@dataclass(eq=False)
class Stage:
    """One drawing that is under way.

    scenes: of its prompts. layout: None while it is being made. calls: of the denoiser so far.
    plain (P, T, d): features of the P pictures' prompts with class nouns; variants: with one concept each.
    part: the concept whose words are read just now. busy: whether the denoiser runs for somebody else.
    """

    scenes: tuple[PromptScene, ...]
    layout: Layout | None = None
    first: int = 0
    calls: int = 0
    plain: Tensor | None = None
    variants: dict[str, Tensor] = field(default_factory=dict)
    part: str | None = None
    watch: Watch | None = None
    look: Callable[[Stage], None] | None = None
    predictions: list[Tensor] = field(default_factory=list)
    masks: Tensor | None = None
    sample: Tensor | None = None
    levels: dict[int, Tensor] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    pictures: int = 1
    rows: Tensor | None = None
    read: dict[str, tuple[Tensor, Tensor, UNetCall | None]] = field(default_factory=dict)

    @property
    def styled(self) -> bool:
        """Whether a style is in the picture, which is everywhere."""
        return any(scene.styles for scene in self.scenes)

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts that have a part of a picture."""
        return tuple(dict.fromkeys(name for scene in self.scenes for name in scene.names))


class Confinement:
    """On one pipeline: during a drawing in stages, says what each map, attention and call computes."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        concept: Concept,
        reading: TokenOwners | None,
        kind: AttentionKind,
        given: Mapping[str, np.ndarray],
    ) -> None:
        self._given = {name: torch.from_numpy(cells).float() for name, cells in given.items()}
        self._pipe, self._words, self._reading, self._kind = pipe, concept.words, reading, kind
        self._ranks = [(gate.ranks, gate.words) for gate in rank_gates(concept)]
        self._here = threading.local()  # one drawing in each thread

    @property
    def stage(self) -> Stage | None:
        """Of this thread's drawing; None outside of one, and while the denoiser runs for somebody else."""
        return getattr(self._here, "stage", None)

    @contextmanager
    def staged(self, stage: Stage | None) -> Iterator[None]:
        """Whatever this thread draws inside of the block is in that stage."""
        before, self._here.stage = self.stage, stage
        try:
            yield
        finally:
            self._here.stage = before

    # What prompts say

    def encode(self, encode: Callable[..., Any], bound: Mapping[str, Any], stage: Stage) -> tuple[Any, ...]:
        """The features of a drawing's prompts with class nouns, by the pipeline's own `encode`; notes what
        each concept's part of the picture reads."""
        given = {name: value for name, value in bound.items() if name != "self"}
        plain = {n: _each(v, self._with) for n, v in given.items() if n in PROMPTS and v is not None}
        stage.part = None
        encoded: tuple[Any, ...] = encode(**{**given, **plain})
        stage.plain, stage.pictures = encoded[0], len(encoded[0])
        if self._reading:
            self._reading.note(encoded[:2], both_halves(plain, encoded))
        if stage.layout is None:
            stage.watch = Watch(self._nouns(stage), self._kind)
            return encoded
        more = {n: v for n, v in given.items() if not n.startswith("negative_prompt")}
        for name in stage.names:
            told = {n: _each(v, self._with, name) for n, v in given.items() if n in SAID and v}
            stage.part = name
            features = encode(**{**more, **told, "do_classifier_free_guidance": False})[0]
            stage.part, stage.variants[name] = None, features
            if self._reading:
                self._reading.note_more(features, _listed(told["prompt"]))
        return encoded

    def _nouns(self, stage: Stage) -> Tensor:
        """Which positions of each picture's prompt are which thing's noun: (P, T, N)."""
        assert stage.plain is not None
        most = max(len(scene.things) for scene in stage.scenes)
        own = torch.zeros(len(stage.scenes), stage.plain.shape[1], most)
        for s, scene in enumerate(stage.scenes):
            for i, thing in enumerate(scene.things):
                before, so_far = (self._with(scene.plain[:end]) for end in (thing.start, thing.end))
                begin, end = (1 + len(spell(self._pipe, text)) for text in (before, so_far))
                own[s, begin:end, i] = 1
        return own.repeat_interleave(stage.pictures // len(own), dim=0)

    def _with(self, text: str, *names: str) -> str:
        return with_concept(text, self._words, names)

    # What the denoiser computes

    def install(self, denoiser: nn.Module) -> Callable[[], None]:
        """Listen to the denoiser, its attention and the maps that concepts change; gives the way back."""
        original = denoiser.forward
        (*parameters,) = inspect.signature(type(denoiser).forward).parameters.values()
        accepted = inspect.Signature(parameters[1:])

        def forward(*args: Any, **kwargs: Any) -> Any:
            stage = self.stage
            if stage is None:
                return original(*args, **kwargs)
            call = accepted.bind(*args, **kwargs).arguments
            return self._step(stage, call, functools.partial(original, *args, **kwargs))

        undo = [
            override(denoiser, "forward", functools.wraps(original)(forward)),
            watch_hooks(denoiser, self._kind, self._before, self._after),
        ]
        for owner in (denoiser, *(encoder for _, encoder in encoders(self._pipe))):
            for path, layer in layers_of(owner).items():
                text = owner is not denoiser or reads_text(path)
                undo.append(self._gated(layer, self._text_gate if text else self._cell_gate))

        def take_off() -> None:
            for step in reversed(undo):
                step()

        return take_off

    def replayed(self) -> bool:
        """Whether the call of the denoiser that is under way computes nothing of the concepts."""
        stage = self.stage
        return stage is not None and (stage.layout is None or stage.calls <= stage.first)

    def _step(self, stage: Stage, call: dict[str, Any], run: Callable[[], Any]) -> Any:
        """One call of the denoiser in a stage."""
        sample, hidden = call["sample"], call["encoder_hidden_states"]
        if stage.plain is None:
            return run()
        stage.size, number = tuple(sample.shape[-2:]), stage.calls
        stage.rows = self._rows(stage, hidden)
        stage.calls += 1
        stage.sample = sample[: stage.pictures]
        layout = stage.layout
        if layout is None:
            if stage.watch:
                stage.watch.begin(stage.size)
            result = run()
            stage.predictions.append(_tensor(result).detach())
            if stage.look:
                stage.look(stage)
            return result
        stage.masks = layout.masks(stage.names).to(sample) if stage.masks is None else stage.masks
        if number >= len(layout.predictions):
            return run()
        if layout.predictions[number].shape != sample.shape:
            raise ConceptError(
                "The pipeline calls its denoiser in another way than when it drew the layout; leave callbacks "
                "that change the guidance out, or attach with confine=False"
            )
        base = layout.predictions[number].to(sample)
        if number < stage.first:
            return (base,) if call.get("return_dict") is False else self._pack(base)
        result = run()
        inside = _repeated(stage.masks.sum(dim=1, keepdim=True).clamp(max=1), len(base))
        own = _tensor(result)
        blended = base + inside * (own - base)
        return (blended,) if isinstance(result, tuple) else type(result)(sample=blended)

    def _pack(self, sample: Tensor) -> Any:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=sample)

    def _rows(self, stage: Stage, hidden: Tensor) -> Tensor:
        """Which picture's prompt each row of the batch reads, -1 for none of them: (B,)."""
        known = stage.read.get("")
        if known is None or known[0] is not hidden:
            assert stage.plain is not None
            plain = stage.plain.to(hidden)
            found = torch.full((len(hidden),), -1)
            for b, row in enumerate(hidden):
                at = b % stage.pictures
                if plain[at].shape == row.shape and torch.equal(plain[at], row):
                    found[b] = at
            stage.read.clear()
            known = stage.read[""] = (hidden, found, None)
        return known[1]

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """In a layout: watch, and show the nouns of things with a place of their own there alone."""
        stage = self.stage
        if stage is None or stage.watch is None or stage.rows is None:
            return None
        queries = args[0] if args else kwargs["hidden_states"]
        first = [int((stage.rows == p).nonzero()[0]) for p in range(stage.pictures)]
        rows = torch.tensor(first, device=queries.device)
        stage.watch.look(module, args, kwargs, rows, len(queries))
        if not any(name in self._given for name in stage.names):
            return None
        inside = torch.ones(stage.pictures, stage.watch.own.shape[2], queries.shape[1], dtype=torch.bool)
        size, each = level(stage.size, queries.shape[1]), stage.pictures // len(stage.scenes)
        for p in range(stage.pictures):
            for i, thing in enumerate(stage.scenes[p // each].things):
                if thing.name in self._given:
                    inside[p, i] = cells_inside(self._given[thing.name][None], size).flatten()
        own = torch.zeros(len(queries), *stage.watch.own.shape[1:])
        every = torch.ones(len(queries), *inside.shape[1:], dtype=torch.bool)
        for b, at in enumerate(stage.rows.tolist()):
            if at >= 0:
                own[b], every[b] = stage.watch.own[at], inside[at]
        return args, hidden_words(kwargs, own.to(queries.device), every.to(queries.device), queries)

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """In each concept's mask, what the cells see in the prompt that names it."""
        stage = self.stage
        if stage is None or stage.layout is None or stage.part is not None or stage.masks is None:
            return None
        cells = output.shape[1]
        inside = self._cells(stage, cells)
        inside = _repeated(inside, len(output)).unsqueeze(3).to(output)
        blended = output * (1 - inside.sum(dim=1).clamp(max=1))
        for i, name in enumerate(stage.names):
            features, scene = self._features(stage, name)
            stage.part = name
            try:
                with self._reading.reads(scene) if self._reading and scene else _nothing():
                    own = self._kind.reading(module, args, kwargs, features)
            finally:
                stage.part = None
            blended = blended + own * inside[:, i]
        return blended

    def _features(self, stage: Stage, name: str) -> tuple[Tensor, UNetCall | None]:
        """What each row of the batch reads in a concept's part (B, T, d), and whose words those are."""
        known = stage.read.get(name)
        hidden, rows, _ = stage.read[""]
        if known is None:
            features = hidden.clone()
            for b, at in enumerate(rows.tolist()):
                if at >= 0:
                    features[b] = stage.variants[name][at].to(features)
            scene = self._reading.scene_of(features) if self._reading else None
            known = stage.read[name] = (hidden, features, scene)
        return known[1], known[2]

    def _cells(self, stage: Stage, cells: int) -> Tensor:
        """The masks (P, N, cells) on a level of the denoiser."""
        assert stage.masks is not None
        if cells not in stage.levels:
            size = level(stage.size, cells)
            stage.levels[cells] = F.interpolate(stage.masks.float(), size, mode="area").flatten(2)
        return stage.levels[cells]

    # What concepts change

    def _gated(
        self, layer: KVDeltaLinear, factor: Callable[[Stage, Tensor], Tensor | float]
    ) -> Callable[[], None]:
        """Multiply what a layer adds by `factor` in a stage; outside of one it is what it was."""
        before = layer.gates.get(ADAPTER)

        def gate(x: Tensor) -> Tensor | None:
            stage = self.stage
            if stage is None:
                return before(x) if before else x.new_ones(())
            share = factor(stage, x)
            return None if isinstance(share, float) and not share else torch.as_tensor(share).to(x)

        layer.gates[ADAPTER] = gate

        def undo() -> None:
            if layer.gates.get(ADAPTER) is gate:
                del layer.gates[ADAPTER]
                if before:
                    layer.gates[ADAPTER] = before

        return undo

    def _text_gate(self, stage: Stage, x: Tensor) -> float:
        """Keys, values and text encoders: on where a concept's words are read; a style's are all over."""
        return 1.0 if stage.part is not None or stage.styled else 0.0

    def _cell_gate(self, stage: Stage, x: Tensor) -> Tensor | float:
        """The other maps: each rank in the cells of its own concepts, a style's everywhere."""
        if stage.layout is None or stage.masks is None:
            inside, style = None, 1.0 if stage.styled else 0.0
            if not self._ranks or not style:
                return style
        elif x.ndim == 3:
            inside = _repeated(self._cells(stage, x.shape[1]), len(x))
        else:
            inside = None
        if not self._ranks:  # whose they are is unknown
            if inside is None or stage.styled:
                return 1.0
            return inside.sum(dim=1).clamp(max=1).unsqueeze(2)
        styles = {name for scene in stage.scenes for name in scene.styles}
        found = []
        for ranks, words in self._ranks:
            own = [i for i, name in enumerate(stage.names) if words is None or name in words]
            if words is not None and styles & set(words):
                cells = x.new_ones(())
            elif inside is None:
                cells = x.new_full((), float(stage.masks is not None and bool(own)))
            else:
                cells = inside[:, own].sum(dim=1).clamp(max=1).to(x)
            found.append(cells.unsqueeze(-1).expand(*cells.shape, ranks))
        shape = max((part.shape[:-1] for part in found), key=len)
        return torch.cat([part.expand(*shape, part.shape[-1]) for part in found], dim=-1)


def _listed(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _each(value: Any, change: Callable[..., str], *more: str) -> Any:
    if isinstance(value, str):
        return change(value, *more)
    return [change(text, *more) for text in value]


def _repeated(of_pictures: Tensor, count: int) -> Tensor:
    """Values (P, ...) of pictures for each of `count` rows of a batch, which are the pictures in their order,
    several times; of a part of the batch with other rows, the most of all."""
    pictures = len(of_pictures)
    if count % pictures:
        return of_pictures.amax(dim=0, keepdim=True).expand(count, *of_pictures.shape[1:])
    return of_pictures.repeat(count // pictures, *[1] * (of_pictures.ndim - 1))


def _tensor(result: Any) -> Tensor:
    found: Tensor = result[0]
    return found


@contextmanager
def _nothing() -> Iterator[None]:
    yield
