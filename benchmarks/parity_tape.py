"""What a run of learning draws and begins with, recorded so that another program can learn from the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from conceptkit.learn import training_step
from conceptkit.learn.trainable_delta import layers
from conceptkit.tuners.inject import ADAPTER


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a batch: n views of the subject, then m pictures of its class.

    clean, noise (n + m, c, h, w); t (n + m,) levels of the schedule; masks (n, h, w); prompts of all of them.
    """

    clean: Tensor
    noise: Tensor
    t: Tensor
    masks: Tensor
    prompts: tuple[str, ...]

    @property
    def own(self) -> int:
        """n."""
        return len(self.masks)


@dataclass(eq=False)
class Tape:
    """parts: in order. downs: the first down factors, by map. rows: the word's first rows, by encoder."""

    parts: list[Part] = field(default_factory=list)
    downs: dict[str, Tensor] = field(default_factory=dict)
    rows: list[Tensor] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain containers and tensors, for `torch.save`."""
        return {"parts": [vars(part) for part in self.parts], "downs": self.downs, "rows": self.rows}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Tape:
        """What `to_json` gave."""
        return cls([Part(**part) for part in stored["parts"]], stored["downs"], stored["rows"])


@contextmanager
def recording() -> Iterator[Tape]:
    """A tape of the learning that goes on meanwhile."""
    tape, loss = Tape(), training_step.loss

    def recorded(context: Any, drawn: Any, conditionings: Any, part: int = 0) -> Tensor:
        if not tape.parts:
            tape.downs = {
                name: layer.downs[ADAPTER].detach().clone()
                for name, layer in layers(context.base.denoiser)
                if ADAPTER in layer.downs
            }
            tables = [encoder.get_input_embeddings() for _, encoder in context.base.encoders]
            tape.rows = [table.rows.detach().clone() for table in tables]
        tape.parts.append(_part(context, drawn, part))
        return loss(context, drawn, conditionings, part)

    with mock.patch.object(training_step, "loss", recorded):
        yield tape


def _part(context: Any, drawn: Any, part: int) -> Part:
    parts, dataset = context.recipe.gradient_accumulation_steps, context.dataset
    mine = context.distributed.share(len(drawn.picks), part, parts)
    theirs = context.distributed.share(len(drawn.others), part, parts)
    places = torch.cat([mine, len(drawn.picks) + theirs])
    picks, others = drawn.picks[mine], drawn.others[theirs]
    clean = dataset.latents[picks]
    if drawn.latent is not None:
        clean = clean + dataset.deviations[picks] * drawn.latent[mine]
    prompts = [dataset.prompts[int(k)] for k in dataset.prompt_of[picks]]
    if len(others):
        clean = torch.cat([clean, context.prior.latents[others]])
        prompts += [context.prior.prompts[int(k)] for k in others]
    return Part(clean, drawn.noise[places], drawn.t[places], dataset.masks[picks], tuple(prompts))
