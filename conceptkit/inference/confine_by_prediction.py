"""Confinement by predictions alone, for denoisers whose attention is not looked at.

A layout compares predictions with and without each noun (`layout_differences`). In a drawing each concept has
calls of its own, in which the prompt names it alone; in its mask stands what these predict.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.base.architectures import architecture_of
from conceptkit.concepts.gates import RankGate, reads_text
from conceptkit.errors import ConceptError
from conceptkit.inference.call_texts import CallTexts, Rows, Unreadable, rows_of
from conceptkit.inference.confined_maps import Factor, of_part
from conceptkit.inference.denoiser_call import DenoiserCall, Result
from conceptkit.inference.drawing_stage import OTHER_CALLS, Stage, repeated
from conceptkit.inference.layer_check import layers_of
from conceptkit.inference.layout_differences import DifferenceWatch, noise_shares
from conceptkit.inference.prompt_scene import Thing, read_scene, with_concept, without
from conceptkit.inference.token_owners import TokenOwners, UNetCall

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class ByPrediction:
    """See `ConfinementKind`.

    words: of the concepts. given: masks (G, G) of those with a place of the user's. nouns: plain class nouns
    that are things too.
    """

    whole = True  # where concepts are drawn the base has to be known too, so a layout costs no more

    def __init__(
        self,
        pipe: DiffusionPipeline,
        words: Mapping[str, str],
        reading: TokenOwners | None,
        given: Mapping[str, Tensor],
        nouns: Collection[str] = (),
    ) -> None:
        self._pipe, self._kind = pipe, architecture_of(pipe)
        self._words, self._nouns = words, nouns
        self._reading, self._given = reading, given
        self._has_lora = False

    def beside(self, gates: Sequence[RankGate]) -> Factor:
        """Maps that read no text act in the calls of their concepts."""
        return of_part(gates)

    def install(self, denoiser: nn.Module, stage_of: Callable[[], Stage | None]) -> Callable[[], None]:
        """Nothing beside the calls."""
        self._has_lora = any(not reads_text(path) for path in layers_of(denoiser))
        return lambda: None

    # What prompts say

    def lay_out(self, stage: Stage, encoded: Sequence[Any], encode: Callable[..., Any]) -> None:
        """The prompts are encoded once more without each of their things."""
        found: dict[Any, Sequence[Any]] = {}
        for i in range(max(len(scene.things) for scene in stage.scenes)):

            def change(text: str, k: int, i: int = i) -> str:
                things = stage.scenes[k].things
                return self._left_out(text, things, i) if i < len(things) else self._plain(text)

            found[i], said = encode(change)
            hidden = self._kind.halves(found[i])[0]
            if self._reading and hidden is not None:
                self._reading.note_more(hidden, said)
        self._note(stage, encoded, found)

    def draw(self, stage: Stage, encoded: Sequence[Any], variants: Mapping[str, Sequence[Any]]) -> None:
        """Each variant has calls of its own."""
        self._note(stage, encoded, variants)

    def _note(self, stage: Stage, encoded: Sequence[Any], variants: Mapping[Any, Sequence[Any]]) -> None:
        if stage.texts is None:
            prompts = len(stage.scenes)
            stage.texts = CallTexts(self._kind, prompts, prompts * stage.images)
        stage.texts.note(encoded, variants)
        stage.plain = stage.texts.hidden

    def _left_out(self, text: str, things: Sequence[Thing], i: int) -> str:
        """A text without the thing that is number `i` of its picture, where it is in this text too."""
        scene, name = read_scene(text, self._words, self._nouns), things[i].called
        before = sum(thing.called == name for thing in things[:i])
        same = [k for k, thing in enumerate(scene.things) if thing.called == name]
        return self._plain(without(scene, same[before]) if before < len(same) else text)

    def _plain(self, text: str) -> str:
        return with_concept(text, self._words, ())

    # What the denoiser computes

    def part(
        self, stage: Stage, name: str, call: Mapping[str, Any]
    ) -> tuple[Tensor, UNetCall | None, Callable[[int], Tensor]]:
        """No part of attention is known. Raises ConceptError."""
        raise ConceptError(f"{name} looks at a reference photo, which takes a UNet with cross-attention")

    def step(self, stage: Stage, call: DenoiserCall) -> Result:
        """One call of the denoiser in a stage."""
        assert stage.texts is not None
        read = self._kind.read_call(call.args, call.kwargs)
        rows = stage.texts.rows(read.hidden)
        if not rows and not stage.number:
            raise Unreadable("The denoiser's first call does not read the prompt")
        try:
            sample = self._kind.unpacked(call.sample, read.size)
        except RuntimeError as error:
            raise Unreadable("The denoiser is given more than the latents of one picture") from error
        if stage.layout is None:
            return self._laid_out(stage, call, rows, sample)
        number, stage.number = stage.number, stage.number + 1
        stage.calls += bool(rows)
        if number >= len(stage.layout.predictions):
            raise ConceptError(OTHER_CALLS)
        base = stage.layout.predictions[number].to(sample)
        if base.shape[0] != sample.shape[0] or base.shape[2:] != sample.shape[2:]:
            raise ConceptError(OTHER_CALLS)
        if stage.calls > stage.first:
            base = self._blended(stage, call, rows, sample, base)
        return call.result(self._kind.packed(base))

    def _laid_out(self, stage: Stage, call: DenoiserCall, rows: Rows, sample: Tensor) -> Result:
        """What the base predicts, watched; beside the place that a user gave a thing, without that thing."""
        if rows and stage.calls and stage.look:
            stage.look(stage)
        stage.number += 1
        stage.sample = sample[: stage.pictures]
        result = call.run()
        predicted = self._predicted(result, sample)
        if not rows:
            stage.predictions.append(predicted.detach())
            return result
        if stage.watch is None:
            nouns = [[t.noun for t in stage.scene(p).things] for p in range(stage.pictures)]
            stage.watch = DifferenceWatch(nouns, noise_shares(self._pipe.scheduler))
        assert isinstance(stage.watch, DifferenceWatch)
        watched = stage.calls in stage.watch.steps
        stage.calls += 1
        outside = self._outside(stage, sample)
        picks = sorted(rows, key=lambda b: rows[b])
        whole, found, off = predicted[picks], [], torch.zeros_like(predicted[picks])
        for i in range(max(len(scene.things) for scene in stage.scenes)):
            if watched or i in outside:
                found.append(self._run(stage, call, rows, i, picks, sample))
                if i in outside:
                    off = off + outside[i] * (found[-1] - whole)
        if watched:
            channels = sample.shape[1]
            stage.watch.note(whole[:, :channels], [one[:, :channels] for one in found])
        if outside:
            predicted = predicted.index_copy(0, torch.tensor(picks, device=predicted.device), whole + off)
            result = call.result(self._kind.packed(predicted))
        stage.predictions.append(predicted.detach())
        return result

    def _outside(self, stage: Stage, sample: Tensor) -> dict[int, Tensor]:
        """Where things with a place of the user's are not to be, (P, 1, H, W) by their numbers."""
        found: dict[int, Tensor] = {}
        for p in range(stage.pictures):
            for i, thing in enumerate(stage.scene(p).things):
                if thing.name is not None and thing.name in self._given:
                    own = self._given[thing.name][None, None].to(sample)
                    size = tuple(sample.shape[-2:])
                    known = found.setdefault(i, sample.new_zeros(stage.pictures, 1, *size))
                    known[p] = 1 - F.interpolate(own, size, mode="area")[0]
        return found

    def _blended(self, stage: Stage, call: DenoiserCall, rows: Rows, sample: Tensor, base: Tensor) -> Tensor:
        """The base's prediction (B, c, H, W), and in its mask each concept's."""
        assert stage.layout is not None
        if stage.masks is None:
            masks = stage.layout.masks(stage.names).to(sample)
            stage.masks = masks / masks.sum(dim=1, keepdim=True).clamp(min=1)
        time = call.arguments.get("timestep", 0.0)
        drawn = stage.carried(stage.calls - 1, time, self._pipe.scheduler, not rows)
        if drawn is None:
            drawn = self._parts(stage, call, rows, sample)
            stage.keep(drawn, sample, time, not rows)
        inside = repeated(stage.masks, len(base))
        return base + sum(inside[:, i, None] * (one - base) for i, one in enumerate(drawn))

    def _parts(self, stage: Stage, call: DenoiserCall, rows: Rows, sample: Tensor) -> Tensor:
        """What is predicted with each concept, (N, B, c, H, W).

        Rows without the prompt depend on a concept by its LoRA alone, so that they are predicted once where
        there is none.
        """
        every, found = range(len(sample)), []
        if not rows:
            closed = self._reading is not None and self._reading.scene.before is None
            if closed or not self._has_lora:
                return self._predicted(call.run(), sample).expand(len(stage.names), *[-1] * sample.ndim)
            for name in stage.names:
                with stage.of_part(name):
                    found.append(self._predicted(call.run(), sample))
            return torch.stack(found)
        for name in stage.names:
            picks = list(every) if self._has_lora or not found else sorted(rows)
            with stage.of_part(name):
                own = self._run(stage, call, rows, name, picks, sample)
            if len(own) < len(sample):
                own = found[0].index_copy(0, torch.tensor(picks, device=own.device), own)
            found.append(own)
        return torch.stack(found)

    def _run(
        self,
        stage: Stage,
        call: DenoiserCall,
        rows: Rows,
        key: Hashable,
        picks: Sequence[int],
        sample: Tensor,
    ) -> Tensor:
        """What the denoiser predicts for these rows of a batch, where rows of the prompt read a variant."""
        assert stage.texts is not None
        arguments = stage.texts.reworded(call.arguments, rows, key)
        if list(picks) != list(range(len(sample))):
            arguments = rows_of(arguments, picks, len(sample))
        other = call.other(arguments)
        hidden = self._kind.read_call(other.args, other.kwargs).hidden
        reads = self._reading.reads(self._reading.scene_of(hidden)) if self._reading else nullcontext()
        with reads:
            return self._predicted(other.run(), sample)

    def _predicted(self, result: Any, sample: Tensor) -> Tensor:
        height, width = sample.shape[-2:]
        return self._kind.unpacked(result[0], (height, width))
