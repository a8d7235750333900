"""What is asked of an architecture; what one does not override is as for a UNet with cross-attention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from conceptkit.base.module_walk import named_modules
from conceptkit.errors import BadBase

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


Batch = Tensor | Sequence[Tensor]
"""Rows of a batch: one tensor (B, ...), or a tensor for each row."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What a denoiser is given of n prompts.

    hidden: (n, T, d). pooled: (n, p), or None. mask: (n, T), which positions are read, or None for all.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.hidden.device

    def __getitem__(self, picks: Tensor) -> Condition:
        return self._each(lambda part: part[picks])

    def to(self, dtype: torch.dtype) -> Condition:
        """The same features in another precision; a mask stays as it is."""
        pooled = None if self.pooled is None else self.pooled.to(dtype)
        return Condition(self.hidden.to(dtype), pooled, self.mask)

    def detach(self) -> Condition:
        """The same without a gradient."""
        return self._each(torch.detach)

    def joined(self, other: Condition) -> Condition:
        """Both as one batch, this one before the other."""
        return Condition(
            stacked([self.hidden, other.hidden]),
            _both(self.pooled, other.pooled),
            _both(self.mask, other.mask),
        )

    def _each(self, function: Any) -> Condition:
        parts = (None if part is None else function(part) for part in (self.hidden, self.pooled, self.mask))
        return Condition(*parts)  # type: ignore[arg-type]


def stacked(parts: Sequence[Tensor], value: float = 0) -> Tensor:
    """Tensors (n, T, ...) as one batch, filled up with `value` to the longest T."""
    length = max(part.shape[1] for part in parts)
    return torch.cat(
        [
            part
            if part.shape[1] == length
            else torch.cat(
                [part, part.new_full((len(part), length - part.shape[1], *part.shape[2:]), value)], dim=1
            )
            for part in parts
        ]
    )


def _device_of(part: Any) -> torch.device:
    """Where a part of a pipeline computes; one that is offloaded is elsewhere until it does."""
    offloaded = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
    return part.device if offloaded is None else torch.device(offloaded)


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else stacked([first, second])


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of the features that a denoiser reads, of `length` positions, which one tokenizer spells.

    tokenizer: None for positions that are empty, as where a pipeline goes without one of its encoders.
    before, after: what stands around a prompt when it is tokenized, as a chat template puts it.
    skipped: so many tokens at the beginning are no positions of the features.
    trimmed: there are as many positions as the longest prompt of a batch has, at most `length`.
    masked: nothing reads positions behind the text.
    left: what fills up stands before the text.
    """

    tokenizer: Any
    length: int
    before: str = ""
    after: str = ""
    skipped: int = 0
    trimmed: bool = False
    masked: bool = False
    left: bool = False


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a denoiser: the text features in it, (B, T, d) or a list of (T, d), the size of the latents,
    and what scales the adapters.

    time: where both halves of guidance have calls of their own, what these two have in common.
    """

    hidden: Any
    size: tuple[int, int]
    scale: float = 1.0
    time: float | None = None


_UNET_ATTENTION = r"\battn[12]\.to_(?:q|k|v|out\.0)"


class Architecture:
    """A kind of denoiser.

    denoiser: the attribute of a pipeline that it is. label: what sentences call it.
    site: names of maps whose input depends on the prompt alone (the text site), as a pattern of their ends.
    presets: what `target_modules` may name -> a pattern of the maps that a LoRA learns on.
    has_cross_attention: whether pictures look at text in layers of their own, `attn2`.
    key_ending: how names of key maps of the text site end; "" where it has none.
    lower_case: whether the pipeline reads prompts in lower case.
    lora_encoders: text encoders that a LoRA may learn on too, as diffusers loads it; T5 and language models
        are none.
    sets_sigmas: whether its pipeline says the noise levels itself, which not all schedulers take.
    latent_output: the `output_type` by which its pipeline gives latents.
    """

    denoiser: ClassVar[str] = "unet"
    label: ClassVar[str] = "UNet"
    site: ClassVar[str] = r"\battn2\.to_[kv]"
    presets: ClassVar[Mapping[str, str]] = {
        "kv": r"\battn2\.to_[kv]",
        "cross": r"\battn2\.to_(?:q|k|v|out\.0)",
        "qkv": r"\battn[12]\.to_[qkv]",
        "attn": _UNET_ATTENTION,
        "attn+ff": rf"(?:{_UNET_ATTENTION}|\bff\.net\.(?:0\.proj|2))",
        "linear": r"",
    }
    has_cross_attention: ClassVar[bool] = True
    key_ending: ClassVar[str] = "attn2.to_k"
    lower_case: ClassVar[bool] = False
    lora_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    sets_sigmas: ClassVar[bool] = False
    latent_output: ClassVar[str] = "latent"

    def of(self, denoiser: nn.Module) -> Architecture:
        """The architecture of this denoiser, where one class has several; by its configuration."""
        return self

    def reads_text(self, name: str) -> bool:
        """Whether a map of the denoiser, by its name without tuners, belongs to the text site."""
        return re.search(f"{self.site}$", name) is not None

    def text_site(self, denoiser: nn.Module) -> dict[str, nn.Linear]:
        """Name -> Linear of the text site in module order; under a tuner layer it is the frozen map.

        Raises BadBase when there is none, or when they read features of different widths.
        """
        maps: dict[str, Any] = {}
        for path, module in named_modules(denoiser, leaves=nn.Linear):
            name = path.replace(".base_layer", "")
            if _is_linear(module) and name not in maps and self.reads_text(name):
                maps[name] = module
                while hasattr(maps[name], "base_layer"):
                    maps[name] = maps[name].base_layer
        widths = {linear.weight.shape[1] for linear in maps.values()}
        if len(widths) != 1:
            found = f"text features of {len(widths)} widths" if widths else "no map that reads text"
            raise BadBase(
                f"{type(denoiser).__name__} has {found}; use a text-to-image pipeline of a family that "
                "`conceptkit bases` lists"
            )
        return maps

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """How the positions of the features are spelt."""
        tokenizer = pipe.tokenizer
        return (Segment(tokenizer, tokenizer.model_max_length),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """The conditions of prompts, through a pipeline's own `encode_prompt`."""
        encoded = pipe.encode_prompt(
            prompt=list(prompts),
            device=device or pipe._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return Condition(encoded[0], encoded[2] if len(encoded) == 4 else None)

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """The features of prompts and of negative prompts in what `encode_prompt` gave."""
        return encoded[0], encoded[1]

    def site_input(self, denoiser: nn.Module, hidden: Tensor) -> Tensor:
        """What the text site reads, (n, T, d), of the features (n, T, e) that the denoiser is given."""
        return hidden

    def site_features(self, denoiser: nn.Module, condition: Condition) -> Tensor:
        """The same of a whole condition, where the mask decides what is read too."""
        return self.site_input(denoiser, condition.hidden)

    def at_site(self, values: Tensor, present: Tensor) -> Tensor:
        """Values (B, T, k) of positions, in the shape in which the text site has its outputs.

        present: (B, T), which positions there are.
        """
        return values

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The prediction (n, c, h, w) for latents (n, c, h, w) at the scheduler's times t (n,)."""
        added = None
        if condition.pooled is not None:
            side = noisy.shape[-1] * pipe.vae_scale_factor
            sizes = torch.tensor([side, side, 0, 0, side, side]).to(condition.pooled)
            added = {"text_embeds": condition.pooled, "time_ids": sizes.repeat(len(noisy), 1)}
        prediction: Tensor = pipe.unet(noisy, t, condition.hidden, added_cond_kwargs=added).sample
        return prediction

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """What a call of the denoiser by its pipeline is about."""
        hidden = kwargs["encoder_hidden_states"] if len(args) < 3 else args[2]
        sample = args[0] if args else kwargs["sample"]
        beside = kwargs.get("cross_attention_kwargs") or {}
        return Call(hidden, tuple(sample.shape[-2:]), float(beside.get("scale", 1.0)))

    def unpacked(self, latents: Batch, size: tuple[int, int]) -> Tensor:
        """Latents or a prediction in the form that the denoiser has them, as (B, c, h, w) of this size."""
        assert isinstance(latents, Tensor)
        return latents

    def packed(self, cells: Tensor) -> Batch:
        """The way back of `unpacked`."""
        return cells

    def noise_shape(self, cells: Sequence[int]) -> tuple[int, ...]:
        """In what shape the pipeline draws the noise of latents (B, c, h, w)."""
        return tuple(cells)

    def given_noise(self, noise: Tensor) -> Tensor:
        """Noise of that shape as the pipeline takes it for its argument `latents`."""
        return noise

    def in_calls(self, encoded: Sequence[Any]) -> Sequence[Any]:
        """What `encode_prompt` gave, as far as the denoiser is given it."""
        return encoded

    def reworded(self, arguments: dict[str, Any], encoded: Sequence[Any]) -> dict[str, Any]:
        """A call's arguments in which all rows read what `encode_prompt` gave, where features alone do not
        say it all."""
        return arguments

    def latents(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """Latents (n, c, h, w) float32 of pictures (n, 3, H, W) in [-1, 1], as the denoiser reads them."""
        vae = pipe.vae
        mean = vae.encode(pixels.to(_device_of(vae), vae.dtype)).latent_dist.mode().float()
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (mean - shift) * vae.config.scaling_factor

    def pixels(self, pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) float32 in [0, 1] of such latents (n, c, h, w)."""
        vae = pipe.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents = latents / vae.config.scaling_factor + shift
        decoded = vae.decode(latents.to(_device_of(vae), vae.dtype)).sample.float()
        return (decoded / 2 + 0.5).clamp(0, 1)

    def latent_deviations(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """How far the autoencoder spreads latents around the means that `latents` gives, (n, c, h, w)."""
        vae = pipe.vae
        spread = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.std.float()
        return spread * vae.config.scaling_factor

    def drawn_latents(self, pipe: DiffusionPipeline, drawn: Tensor) -> Tensor:
        """Latents (n, c, h, w) of what a pipeline gives with `output_type="latent"`, in its own size."""
        return drawn

    def cell(self, pipe: DiffusionPipeline) -> int:
        """Pixels on a side of what one position of the latents stands for."""
        return int(pipe.vae_scale_factor)

    def picture_size(self, pipe: DiffusionPipeline) -> int:
        """Pixels on a side of what the base draws."""
        return int(getattr(pipe, self.denoiser).config.sample_size) * self.cell(pipe)

    def guided(self, scales: Mapping[str, float], count: int) -> dict[str, Any]:
        """Guidance as the pipeline of `count` prompts is called with it."""
        return dict(scales)

    def size_multiple(self, pipe: DiffusionPipeline) -> int:
        """Pixels by which widths and heights can be divided: cells of the latents, in patches."""
        patch = getattr(pipe, self.denoiser).config.get("patch_size")
        return self.cell(pipe) * (patch if isinstance(patch, int) else 1)

    def largest_size(self, pipe: DiffusionPipeline) -> int | None:
        """The longest side in pixels that the denoiser has positions for; None without a limit."""
        config = getattr(pipe, self.denoiser).config
        most = config.get("pos_embed_max_size")
        return None if most is None else int(most) * int(config.patch_size) * int(pipe.vae_scale_factor)

    def draw_options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """What a pipeline is called with beside prompt, steps, seeds and scales."""
        return {}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or "base_layer" in module._modules
