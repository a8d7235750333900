"""Confinement in UNets: attention to nouns lays out, and in its mask each concept's text is attended to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conceptkit.base.architectures import architecture_of
from conceptkit.base.text_features import spell
from conceptkit.concepts.gates import RankGate
from conceptkit.errors import ConceptError
from conceptkit.inference.attention_masks import cells_inside, hidden_words, level
from conceptkit.inference.call_texts import Unreadable
from conceptkit.inference.confined_maps import Factor, of_cells
from conceptkit.inference.denoiser_call import DenoiserCall, Result
from conceptkit.inference.drawing_stage import OTHER_CALLS, Stage, repeated
from conceptkit.inference.layout_attention import AttentionKind, Watch, watch_hooks
from conceptkit.inference.prompt_scene import with_concept
from conceptkit.inference.token_owners import TokenOwners, UNetCall

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class ByAttention:
    """See `ConfinementKind`.

    kind: of the attention. words: of the concepts. given: masks (G, G) of those with a place of the user's.
    """

    whole = False

    def __init__(
        self,
        pipe: DiffusionPipeline,
        kind: AttentionKind,
        words: Mapping[str, str],
        reading: TokenOwners | None,
        given: Mapping[str, Tensor],
    ) -> None:
        self._pipe, self._kind, self._words = pipe, kind, words
        self._reading, self._given = reading, given
        self._architecture = architecture_of(pipe)

    def beside(self, gates: Sequence[RankGate]) -> Factor:
        """Maps that read no text act in the cells of their concepts."""
        return of_cells(gates)

    def lay_out(self, stage: Stage, encoded: Sequence[Any], encode: Callable[..., Any]) -> None:
        """The positions of nouns are watched."""
        stage.plain = encoded[0]
        stage.watch = Watch(self._nouns(stage), self._kind)

    def draw(self, stage: Stage, encoded: Sequence[Any], variants: Mapping[str, Sequence[Any]]) -> None:
        """The features of each variant are kept."""
        stage.plain = encoded[0]
        stage.variants = {name: features[0] for name, features in variants.items()}

    def _nouns(self, stage: Stage) -> Tensor:
        """Which positions of each picture's prompt are which thing's noun: (P, T, N)."""
        assert stage.plain is not None
        most = max(len(scene.things) for scene in stage.scenes)
        own = torch.zeros(len(stage.scenes), stage.plain.shape[1], most)
        for s, scene in enumerate(stage.scenes):
            for i, thing in enumerate(scene.things):
                ends = (scene.plain[:end] for end in (thing.start, thing.end))
                before, so_far = (with_concept(text, self._words, ()) for text in ends)
                begin, end = (1 + len(spell(self._pipe, text)[0]) for text in (before, so_far))
                own[s, begin:end, i] = 1
        return own.repeat_interleave(stage.pictures // len(own), dim=0)

    # What the denoiser computes

    def install(self, denoiser: nn.Module, stage_of: Callable[[], Stage | None]) -> Callable[[], None]:
        """Listen to the attention."""
        return watch_hooks(
            denoiser,
            self._kind,
            before=functools.partial(self._before, stage_of),
            after=functools.partial(self._after, stage_of),
            between=functools.partial(self._between, stage_of),
        )

    def part(
        self, stage: Stage, name: str, call: Mapping[str, Any]
    ) -> tuple[Tensor, UNetCall | None, Callable[[int], Tensor]]:
        """What a concept's part reads (B, T, d), whose words those are, and from a number of cells where it
        is (P, cells)."""
        stage.read(call["sample"], call["encoder_hidden_states"])
        features, scene = stage.features(name, self._reading)
        return features, scene, lambda cells: stage.cells(cells)[:, stage.names.index(name)]

    def step(self, stage: Stage, call: DenoiserCall) -> Result:
        """One call of the denoiser in a stage."""
        given = call.arguments
        sample, number, layout = given["sample"], stage.calls, stage.layout
        stage.begin(sample, given["encoder_hidden_states"])
        if layout is None:
            result: Any = call.run()
            stage.predictions.append(result[0].detach())
            if stage.look:
                stage.look(stage)
            return result
        if number >= len(layout.predictions):
            return call.run()
        base = layout.predictions[number].to(sample)
        if base.shape[0] != sample.shape[0] or base.shape[2:] != sample.shape[2:]:
            raise ConceptError(OTHER_CALLS)
        if number < stage.first:
            return call.result(base)
        drawn = stage.carried(number, given["timestep"], self._pipe.scheduler)
        if drawn is None:
            computed: Any = call.run()
            drawn = computed[0]
            stage.keep(drawn, sample, given["timestep"])
        assert stage.masks is not None
        inside = repeated(stage.masks.sum(dim=1, keepdim=True).clamp(max=1), len(base))
        return call.result(base + inside * (drawn - base))

    def _between(
        self,
        stage_of: Callable[[], Stage | None],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """In a layout: watch how the cells of the pictures attend to each other."""
        stage = stage_of()
        if stage is None or not stage.spread or stage.rows is None:
            return
        if isinstance(stage.watch, Watch):
            queries = args[0] if args else kwargs["hidden_states"]
            stage.watch.look_between(module, args, kwargs, _first_rows(stage, queries))

    def _before(
        self,
        stage_of: Callable[[], Stage | None],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """In a layout: watch, and show the nouns of things with a place of their own there alone."""
        stage = stage_of()
        if stage is None or not isinstance(stage.watch, Watch) or stage.rows is None:
            return None
        queries = args[0] if args else kwargs["hidden_states"]
        stage.watch.look(module, args, kwargs, _first_rows(stage, queries))
        if not any(name in self._given for name in stage.names):
            return None
        size = level(stage.watch.size, queries.shape[1])
        own = torch.zeros(len(queries), *stage.watch.own.shape[1:])
        inside = torch.ones(len(queries), own.shape[2], queries.shape[1], dtype=torch.bool)
        for b, at in enumerate(stage.rows.tolist()):
            if at < 0:
                continue
            own[b] = stage.watch.own[at]
            for i, thing in enumerate(stage.scene(at).things):
                if thing.name is not None and thing.name in self._given:
                    inside[b, i] = cells_inside(self._given[thing.name][None], size).flatten()
        return args, hidden_words(kwargs, own.to(queries.device), inside.to(queries.device), queries)

    def _after(
        self,
        stage_of: Callable[[], Stage | None],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        """In each concept's mask, what the cells see in the prompt that names it."""
        stage = stage_of()
        if stage is None or stage.layout is None or stage.part is not None or stage.masks is None:
            return None
        inside = repeated(stage.cells(output.shape[1]), len(output)).unsqueeze(3).to(output)
        blended = output * (1 - inside.sum(dim=1).clamp(max=1))
        for i, name in enumerate(stage.names):
            features, scene = stage.features(name, self._reading)
            with (
                stage.of_part(name),
                self._reading.reads(scene) if self._reading and scene else nullcontext(),
            ):
                read = self._architecture.site_input(self._pipe.unet, features)
                own = self._kind.reading(module, args, kwargs, read)
            blended = blended + own * inside[:, i]
        return blended


def _first_rows(stage: Stage, queries: Tensor) -> Tensor:
    """The first row of the batch that reads each picture's prompt, (pictures,).

    Raises Unreadable where one has none, as in the calls of self-attention guidance (2210.00939) that read no
    prompt.
    """
    assert stage.rows is not None
    reads = stage.rows == torch.arange(stage.pictures)[:, None]
    if not bool(reads.any(dim=1).all()):
        raise Unreadable
    return reads.int().argmax(dim=1).to(queries.device)
