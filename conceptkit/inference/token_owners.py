"""Whose word is it? What a pipeline encodes is remembered, and found again in what its UNet is given.

Both halves of classifier-free guidance, several prompts and several pictures of each meet in one batch; rows
of the batch are told apart by their numbers, which joining and repeating them leaves as they are, and a cast
to another precision nearly so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle

from conceptkit.base.architectures import architecture_of
from conceptkit.base.architectures.architecture import Batch, Call
from conceptkit.base.text_features import BEGIN, WORD, positions, roles, spell, token_ids
from conceptkit.errors import ConceptError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


OTHER, END, UNKNOWN, NOWHERE = -1, -2, -3, -4
"""Owners of positions that are no concept's: words and the beginning; end of text and padding; those of
prompts that were encoded elsewhere; none at all, where another row of the batch is longer."""
ROUNDED = 5e-3
"""How far features may be from remembered ones, by their length: bfloat16 and back is 2e-3 away."""
REMEMBERED = 32
"""Encoded prompts kept at most when another drawing begins, beside all of its own."""


@dataclass(frozen=True, eq=False)
class UNetCall:
    """What one call of the UNet is about.

    owners: (B, T) index of the concept whose word a position is, or OTHER or END. mentioned: (B, N) whether
    the row's prompt names each concept. size: height and width of the latents. key: which drawing of which
    prompts this is. step: how many calls about it came before. pictures: how many are drawn; the rows of each
    half of guidance are these, in order. scale: of what concepts add, as `cross_attention_kwargs` gives it.
    before: `mentioned` of the call before, where that was the other half of guidance.
    """

    owners: Tensor
    mentioned: Tensor
    size: tuple[int, int]
    key: tuple[int, ...]
    step: int
    pictures: int = 1
    scale: float = 1.0
    before: Tensor | None = None


class TokenOwners:
    """Listens to a pipeline's `encode_prompt` and UNet; `texts` are the ways to write each concept.

    strict: prompts that were encoded elsewhere are a ConceptError; otherwise their owners are UNKNOWN.
    """

    def __init__(
        self, pipe: DiffusionPipeline, texts: Mapping[str, Sequence[str]], strict: bool = True
    ) -> None:
        self.names, self._strict = tuple(texts), strict
        self._pipe = pipe
        self._spelt = [[spell(pipe, text) for text in written] for written in texts.values()]
        self._known: deque[tuple[int, Tensor, Tensor]] = deque()
        self._count = self._drawings = 0
        self._here = threading.local()  # one drawing in each thread

    @property
    def scene(self) -> UNetCall:
        """Of the call of the UNet that is under way in this thread."""
        return self._here.scene

    def note(self, encoded: Sequence[Tensor | None], texts: Sequence[Sequence[str] | None]) -> None:
        """Remember `encode_prompt`'s features (n k, T, d) of each list of n prompts, k pictures of each."""
        self._drawings += 1
        self._here.drawing, self._here.steps, self._here.last = self._drawings, {}, None
        self._here.half = None
        self._here.pictures = next((len(hidden) for hidden in encoded if hidden is not None), 1)
        while len(self._known) > REMEMBERED:
            self._known.pop()
        for hidden, prompts in zip(encoded, texts, strict=True):
            if hidden is None or not prompts:
                continue
            self.note_more(hidden, prompts)

    def note_more(self, hidden: Batch, prompts: Sequence[str]) -> None:
        """Remember features (n k, T, d) of n prompts for the drawing that was noted last."""
        owners = self.owners(prompts)
        trimmed = any(segment.trimmed for segment in architecture_of(self._pipe).segments(self._pipe))
        pictures = len(hidden) // len(prompts)
        for row, owner in zip(hidden[::pictures], owners, strict=True):
            if self._known_as(row) is None:
                self._count += 1
                self._known.appendleft(
                    (self._count, row.detach().clone(), owner[: len(row)] if trimmed else owner)
                )

    def owners(self, prompts: Sequence[str]) -> Tensor:
        """(n, T) for prompts as they are encoded, tokens written out."""
        ids = token_ids(self._pipe, prompts)
        role = roles(self._pipe, ids)
        owner = torch.where((role == WORD) | (role == BEGIN), OTHER, END)
        for i, spelt in enumerate(self._spelt):
            for word in spelt:
                owner[positions(ids, word)] = i
        return owner

    def listen(self, denoiser: nn.Module) -> RemovableHandle:
        """Look at every call of the denoiser; the handle takes the hook off again."""
        kind = architecture_of(self._pipe)

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = kind.read_call(args, kwargs)
            scene = self._scene(call.hidden, call.size)
            self._here.scene = replace(scene, scale=call.scale, before=self._other_half(call, scene))

        return denoiser.register_forward_pre_hook(look, with_kwargs=True)

    def _other_half(self, call: Call, scene: UNetCall) -> Tensor | None:
        """What the prompts of the same pictures mention, at the call without a prompt that follows theirs."""
        last, mentioned = getattr(self._here, "half", None), scene.mentioned
        if call.time is None:
            return None
        if last is not None and last[0] == call.time and last[1].shape == mentioned.shape:
            self._here.half = None
            found: Tensor = last[1]
            return found
        self._here.half = (call.time, mentioned)
        return None

    def scene_of(self, hidden: Batch) -> UNetCall:
        """What the call of the UNet that is under way would be about if it read `hidden`, (B, T, d) or a list
        of (T, d)."""
        owners, mentioned, _ = self._about(hidden)
        device = hidden[0].device
        return replace(self.scene, owners=owners.to(device), mentioned=mentioned.to(device))

    @contextmanager
    def reads(self, scene: UNetCall) -> Iterator[None]:
        """Inside of the block this is the call of the UNet that is under way."""
        before, self._here.scene = self.scene, scene
        try:
            yield
        finally:
            self._here.scene = before

    def _about(self, hidden: Any) -> tuple[Tensor, Tensor, list[int]]:
        """Owners (B, T) and mentions (B, N) of a batch, and the numbers of its prompts."""
        found = [self._find(row) for row in hidden]
        owners = pad_sequence([owner for _, owner in found], batch_first=True, padding_value=NOWHERE)
        mentioned = torch.stack([(owners == i).any(dim=1) for i in range(len(self.names))], dim=1)
        return owners, mentioned, [key for key, _ in found]

    def _scene(self, hidden: Any, size: tuple[int, int]) -> UNetCall:
        last = getattr(self._here, "last", None)
        if last is None or last[0] is not hidden:
            owners, mentioned, keys = self._about(hidden)
            drawing = getattr(self._here, "drawing", 0)
            last = (hidden, (drawing, *keys), owners, mentioned)
            self._here.last = last
        _, key, owners, mentioned = last
        steps = self._here.__dict__.setdefault("steps", {})
        step = steps[key] = steps.get(key, -1) + 1
        pictures = getattr(self._here, "pictures", 1)
        device = hidden[0].device
        return UNetCall(owners.to(device), mentioned.to(device), size, key, step, pictures)

    def _find(self, row: Tensor) -> tuple[int, Tensor]:
        if (found := self._known_as(row)) is not None:
            return found
        if not self._strict:
            return 0, torch.full(row.shape[:1], UNKNOWN)
        raise ConceptError(
            "These prompt embeddings were not made while the concepts were attached, so whose words they "
            "hold is unknown; encode the prompt again with this pipeline"
        )

    def _known_as(self, row: Tensor) -> tuple[int, Tensor] | None:
        there = tuple(self._known)  # another thread may be noting meanwhile
        alike = [(key, known.to(row), owner) for key, known, owner in there if known.shape == row.shape]
        for key, known, owner in alike:
            if torch.equal(known, row):
                return key, owner
        if not alike:
            return None
        key, known, owner = min(alike, key=lambda each: float((each[1] - row).norm()))
        return (key, owner) if float((known - row).norm()) <= ROUNDED * float(row.norm()) else None


def both_halves(
    spelt: Mapping[str, Any], encoded: Sequence[Any]
) -> tuple[list[str] | None, list[str] | None]:
    """The prompts behind the positive and the negative features; without a negative one it is empty."""
    positive = spelt.get("prompt")
    negative = spelt.get("negative_prompt")
    told = [positive] if isinstance(positive, str) else positive and list(positive)
    count = len(told) if told else 1
    against = [negative] * count if isinstance(negative, str) else list(negative or [""] * count)
    return told, against if told or negative else None
