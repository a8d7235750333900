"""What is known while a picture is laid out, and while it is drawn: one stage of a drawing, in one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conceptkit.inference.attention_masks import level
from conceptkit.inference.call_texts import CallTexts
from conceptkit.inference.layout import Layout
from conceptkit.inference.layout_attention import Watch
from conceptkit.inference.layout_differences import DifferenceWatch
from conceptkit.inference.prompt_scene import PromptScene
from conceptkit.inference.token_owners import TokenOwners, UNetCall

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


OTHER_CALLS = (
    "The pipeline calls its denoiser in another way than when it drew the layout; leave callbacks out that "
    "change the guidance, or attach with confine=False"
)


class Enough(Exception):
    """A layout need not be drawn any further."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout


@dataclass(eq=False)
class Stage:
    """One drawing that is under way, of P pictures.

    scenes: of its prompts. layout: None while it is being made. first: the call of the denoiser with
    which the picture parts from its layout; up to call `sparse` every second one is carried over. look:
    called after each call while the layout is made. calls: of the denoiser so far. plain (P, T, d): what
    it reads of the prompts with class nouns; variants: with one concept each. part: the concept whose
    words are read just now. masks (P, N, H, W): of `names`. predictions: what the denoiser gave. sample
    (P, c, H, W): what it was given last. rows (B,): which picture's prompt each row of its batch reads,
    -1 for none. shares: what `confined_maps` has worked out. images: how many are drawn of each prompt.
    number: of the denoiser's calls so far, where each half of guidance has one, and `calls` counts both as
    one. texts: where they are in these calls. checked: whether it was looked for things that lack. spread:
    whether it is watched how cells attend to each other, while the layout is made.
    """

    scenes: tuple[PromptScene, ...]
    layout: Layout | None = None
    first: int = 0
    sparse: int = 0
    look: Callable[[Stage], None] | None = None
    calls: int = 0
    plain: Any = None
    variants: dict[str, Tensor] = field(default_factory=dict)
    part: str | None = None
    watch: Watch | DifferenceWatch | None = None
    masks: Tensor | None = None
    predictions: list[Tensor] = field(default_factory=list)
    sample: Tensor | None = None
    rows: Tensor | None = None
    _hidden: Tensor | None = None
    images: int = 1
    checked: bool = False
    spread: bool = False
    number: int = 0
    texts: CallTexts | None = None
    _kept: dict[bool, tuple[Tensor, Tensor, Tensor | float]] = field(default_factory=dict)
    _read: dict[str, tuple[Tensor, UNetCall | None]] = field(default_factory=dict)
    _levels: dict[int, Tensor] = field(default_factory=dict)
    shares: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @property
    def pictures(self) -> int:
        """How many are drawn."""
        return 1 if self.plain is None else len(self.plain)

    @property
    def styled(self) -> bool:
        """Whether a style is in a picture, which is everywhere."""
        return any(scene.styles for scene in self.scenes)

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts that have a part of a picture."""
        return tuple(dict.fromkeys(name for scene in self.scenes for name in scene.names))

    def scene(self, picture: int) -> PromptScene:
        """Of the prompt of a picture, each of which has several."""
        return self.scenes[picture // (self.pictures // len(self.scenes))]

    @contextmanager
    def of_part(self, name: str | None) -> Iterator[None]:
        """Inside of the block the words of a concept are read."""
        before, self.part = self.part, name
        try:
            yield
        finally:
            self.part = before

    def begin(self, sample: Tensor, hidden: Tensor) -> None:
        """The denoiser is called with a batch (B, c, H, W) that reads `hidden` (B, T, d)."""
        self.calls += 1
        if isinstance(self.watch, Watch) and self.layout is None:
            self.watch.begin((sample.shape[-2], sample.shape[-1]))
        self.read(sample, hidden)

    def read(self, sample: Tensor, hidden: Tensor) -> None:
        """Find out which rows of a batch read which picture's prompt."""
        assert self.plain is not None
        self.sample = sample[: self.pictures]
        if self.layout is not None and self.masks is None:
            self.masks = self.layout.masks(self.names).to(sample)
        if self._hidden is hidden:
            return
        self._hidden, plain = hidden, self.plain.to(hidden)
        self._read.clear()
        self.rows = torch.full((len(hidden),), -1)
        for b, row in enumerate(hidden):
            at = b % self.pictures
            if plain[at].shape == row.shape and torch.equal(plain[at], row):
                self.rows[b] = at

    def skips(self, number: int) -> bool:
        """Whether a call of the denoiser goes on with what the one before it has predicted."""
        return self.first < number < self.sparse and (number - self.first) % 2 == 1

    def keep(self, predicted: Tensor, sample: Tensor, time: Tensor | float, negative: bool = False) -> None:
        """Remember predictions (..., B, c, H, W) of `sample` (B, c, H, W), to be carried over.

        negative: whether the call is the half of guidance that reads no prompt.
        """
        self._kept[negative] = predicted, sample, time

    def carried(
        self, number: int, time: Tensor | float, scheduler: SchedulerMixin, negative: bool = False
    ) -> Tensor | None:
        """What the call before this one predicted, at this one's time; None where it is to be computed.

        Picture and noise stay what they were, as in one step of twice the length.
        """
        if negative not in self._kept or not self.skips(number):
            return None
        predicted, sample, before = self._kept[negative]
        if getattr(scheduler.config, "prediction_type", "epsilon") != "v_prediction":
            return predicted  # noise or velocity, the same at both times
        channels = sample.shape[-3]  # those behind them are of its variance
        predicted, variance = predicted[..., :channels, :, :], predicted[..., channels:, :, :]
        (a, s), (a2, s2) = (_signal_and_noise(scheduler, at) for at in (before, time))
        noise, picture = s * sample + a * predicted, a * sample - s * predicted
        return torch.cat([a2 * noise - s2 * picture, variance], dim=-3)

    def features(self, name: str, reading: TokenOwners | None) -> tuple[Tensor, UNetCall | None]:
        """What each row of the batch reads in a concept's part (B, T, d), and whose words those are."""
        assert self._hidden is not None and self.rows is not None
        if name not in self._read:
            features = self._hidden.clone()
            for b, at in enumerate(self.rows.tolist()):
                if at >= 0:
                    features[b] = self.variants[name][at].to(features)
            self._read[name] = features, reading.scene_of(features) if reading else None
        return self._read[name]

    def cells(self, count: int) -> Tensor:
        """The masks (P, N, cells) on a level of the denoiser that has so many cells."""
        assert self.masks is not None and self.sample is not None
        if count not in self._levels:
            size = level((self.sample.shape[-2], self.sample.shape[-1]), count)
            self._levels[count] = F.interpolate(self.masks.float(), size, mode="area").flatten(2)
        return self._levels[count]


def _signal_and_noise(scheduler: SchedulerMixin, time: Tensor | float) -> tuple[float, float]:
    """The shares of picture and noise at a time (2006.11239, eq. 4)."""
    kept = scheduler.alphas_cumprod
    share = float(kept[min(max(round(float(torch.as_tensor(time).flatten()[0])), 0), len(kept) - 1)])
    return share**0.5, (1 - share) ** 0.5


def repeated(of_pictures: Tensor, count: int) -> Tensor:
    """Values (P, ...) of pictures for each of `count` rows of a batch, which are the pictures in their order,
    several times; of a part of the batch with other rows, the most of all."""
    pictures = len(of_pictures)
    if count % pictures:
        return of_pictures.amax(dim=0, keepdim=True).expand(count, *of_pictures.shape[1:])
    return of_pictures.repeat(count // pictures, *[1] * (of_pictures.ndim - 1))
