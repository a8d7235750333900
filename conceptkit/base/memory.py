"""How much memory learning takes, counted on the meta device: shapes alone, no weights are needed.

Three things take memory while a base learns: its weights, what learns (with gradients and moments), and the
activations that are kept for going back. Text encoders and autoencoder are there before that, until features
and latents are cached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from conceptkit.base.architectures import Condition, architecture_of_denoiser

GIB = 2**30
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
QUANTIZED = {"bnb-8bit": 1.0, "torchao-int8": 1.0, "bnb-4bit": 0.5 + 4 / 64}
"""Bytes of a weight; nf4 has a scale of four bytes for each 64 of them (2305.14314, section 3)."""
LEARNED = {"adamw": 16, "adamw8bit": 10, "prodigy": 24}
"""Bytes for each number that learns: itself and its gradient in float32, and what the optimizer keeps, two
moments; Prodigy keeps the first values and a sum too."""
RESERVED = 0.75 * GIB
"""What CUDA and its libraries take for themselves, and what is lost between blocks of memory."""
ENCODED_PIXELS = 8 * 512 * 512
"""Pixels that the autoencoder encodes at once."""
ENCODER_CHANNELS = 128
"""Channels of its first layers, unless its configuration says so."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. weights: of the denoiser; read_once: of text encoders and autoencoder; encoding: of what these
    compute; learning: of what learns; activations: of what is kept for going back."""

    weights: int
    read_once: int
    encoding: int
    learning: int
    activations: int

    @property
    def caching(self) -> int:
        """While features and latents are cached."""
        return self.weights + self.read_once + self.encoding

    @property
    def steps(self) -> int:
        """While it learns."""
        return self.weights + self.learning + self.activations

    @property
    def most(self) -> int:
        """The most of both."""
        return max(self.caching, self.steps)

    @property
    def peak(self) -> int:
        """The most of both, and what is reserved beside."""
        return self.most + int(RESERVED)

    def text(self) -> str:
        """The sum, as in "4.1 GiB: weights 1.6, what learns 0.0, activations 1.7, CUDA 0.8"."""
        return f"{self.peak / GIB:.1f} GiB: {self.parts()}, CUDA {RESERVED / GIB:.1f}"

    def parts(self) -> str:
        """What is there when it is most, as in "weights 1.6, what learns 0.0, activations 1.7"."""
        parts = {"weights": self.weights}
        if self.caching > self.steps:
            parts |= {"text encoders and autoencoder": self.read_once, "encoding": self.encoding}
        else:
            parts |= {"what learns": self.learning, "activations": self.activations}
        return ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())


@dataclass(frozen=True)
class LearningPlan:
    """What decides over the memory of learning.

    maps: names of the denoiser's maps that learn, each with the numbers that learn there.
    pixels: of a picture's side. batch: pictures in one pass. keeps_encoders: whether text encoders stay.
    numbers: how many learn in all, words and text encoders too; None: those of the maps.
    """

    maps: Mapping[str, int]
    pixels: int
    batch: int = 1
    dtype: str = "bf16"
    quantization: str | None = None
    gradient_checkpointing: bool = True
    optimizer: str = "adamw"
    keeps_encoders: bool = False
    numbers: int | None = None


def estimate(
    denoiser: nn.Module, beside: Collection[nn.Module], cell: int, plan: LearningPlan
) -> MemoryEstimate:
    """The memory of a plan.

    denoiser, beside: the model that learns, and text encoders and autoencoder, on any device, meta too.
    cell: pixels of a cell of the latents on a side.
    """
    size = BYTES[plan.dtype]
    numbers = sum(plan.maps.values()) if plan.numbers is None else plan.numbers
    read_once = int(sum(p.numel() for module in beside for p in module.parameters()) * size)
    weights = weight_bytes(denoiser, plan.dtype, plan.quantization)
    return MemoryEstimate(
        weights=weights + (read_once if plan.keeps_encoders else 0),
        read_once=0 if plan.keeps_encoders else read_once,
        encoding=int(encoding_numbers(beside, plan.pixels) * size),
        learning=numbers * LEARNED.get(plan.optimizer, LEARNED["adamw"]),
        activations=activation_bytes(denoiser, cell, plan),
    )


def pictures_at_once(pixels: int) -> int:
    """How many pictures of a size, given as the number of pixels in one, are encoded at the same time."""
    return max(1, min(8, ENCODED_PIXELS // pixels))


def encoding_numbers(beside: Collection[nn.Module], side: int) -> int:
    """What an autoencoder computes at most at once: three results of its first and largest layers."""
    configs = (getattr(module, "config", None) for module in beside)
    channels = [getattr(config, "block_out_channels", (ENCODER_CHANNELS,))[0] for config in configs]
    widest = next((c for c in reversed(channels)), ENCODER_CHANNELS)
    return 3 * pictures_at_once(side**2) * side**2 * int(widest)


def weight_bytes(denoiser: nn.Module, dtype: str, quantization: str | None = None) -> int:
    """Bytes of a denoiser's weights; maps that read text are never quantised."""
    size = BYTES[dtype]
    if quantization is None:
        return int(sum(p.numel() for p in denoiser.parameters()) * size)
    kept = {f"{name}.weight" for name in architecture_of_denoiser(denoiser).text_site(denoiser)}
    linear = {f"{name}.weight" for name, one in denoiser.named_modules() if isinstance(one, nn.Linear)}
    few = QUANTIZED[quantization]
    return int(sum(p.numel() * (few if n in linear - kept else size) for n, p in denoiser.named_parameters()))


def activation_bytes(denoiser: nn.Module, cell: int, plan: LearningPlan) -> int:
    """Bytes that one pass forward keeps for the way back, counted tensor by tensor on the meta device.

    With gradient checkpointing: what goes into each block that is computed twice, and all of the largest one.
    """
    twin = on_meta(denoiser, plan.dtype)
    for name, linear in twin.named_modules():
        if name in plan.maps and isinstance(linear, nn.Linear):
            linear.weight.requires_grad_()  # then its input is kept, as for the factors of a LoRA
    count = _Count({_storage(p) for p in twin.parameters()})
    if plan.gradient_checkpointing:
        twin.enable_gradient_checkpointing(count.block)  # type: ignore[operator]
    twin.train()
    with torch.device("meta"), count.keeping(), _FlashAttention():
        _predict(twin, plan, cell)
    return count.bytes


def on_meta(denoiser: nn.Module, dtype: str = "fp32") -> nn.Module:
    """A copy without weights, frozen, in some precision."""
    kind: Any = type(getattr(denoiser, "_orig_mod", denoiser))
    config: Any = denoiser.config
    with torch.device("meta"):
        made: nn.Module = kind.from_config(config)
    numbers = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return nn.Module.to(made, numbers[dtype]).requires_grad_(False)  # diffusers' own says what it keeps


@dataclass(eq=False)
class _Count:
    """Bytes of tensors that are kept, each once. own: storages of parameters, which are there anyway."""

    own: set[int]
    kept: dict[int, Tensor] = field(default_factory=dict)
    largest: int = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor, held so that its identity stays its own."""
        if (key := _storage(tensor)) not in self.own:
            self.kept[key] = tensor
        return tensor

    def keeping(self) -> contextlib.AbstractContextManager[Any]:
        """A block in which all that autograd keeps is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)

    def block(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of diffusers' checkpointing: a block whose inputs alone are kept."""
        for given in (*args, *kwargs.values()):
            if isinstance(given, Tensor):
                self.keep(given)
        inside = _Count(self.own)
        with inside.keeping():
            found = function(*args, **kwargs)
        own = sum(_size(t) for key, t in inside.kept.items() if key not in self.kept)
        self.largest = max(self.largest, own)
        return found

    @property
    def bytes(self) -> int:
        return sum(map(_size, self.kept.values())) + self.largest


def _storage(tensor: Tensor) -> int:
    """What tensors that share their memory have in common; on the meta device all addresses are 0."""
    return int(tensor.untyped_storage()._cdata)


def _size(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())


def _predict(denoiser: nn.Module, plan: LearningPlan, cell: int) -> Tensor:
    """One pass forward on shapes, as learning does it."""
    config: Any = denoiser.config
    weight = next(denoiser.parameters())
    side = plan.pixels // cell
    kind = architecture_of_denoiser(denoiser)
    channels = config.in_channels // 4 if type(denoiser).__name__.startswith("Flux") else config.in_channels
    noisy = torch.empty(plan.batch, channels, side, side, dtype=weight.dtype).requires_grad_()
    pipe: Any = SimpleNamespace(vae_scale_factor=cell, **{kind.denoiser: denoiser})
    t = torch.empty(plan.batch, dtype=torch.float32)
    return kind.predict(pipe, noisy, t, _condition(config, plan.batch, weight.dtype))


def _condition(config: Any, n: int, dtype: torch.dtype) -> Condition:
    """Features of as many positions and as wide as the denoiser reads them."""
    names = (
        *("joint_attention_dim", "caption_channels", "encoder_hid_dim"),
        *("cross_attention_dim_t5", "cross_attention_dim"),
    )
    width = next(config[name] for name in names if config.get(name) is not None)
    positions = {
        "caption_channels": 300,
        "encoder_hid_dim": 256,
        "cross_attention_dim_t5": 77 + 256,
        "cross_attention_dim": 77,
    }
    length = next(positions.get(name, 512) for name in names if config.get(name) is not None)
    masked = (positions["caption_channels"], positions["cross_attention_dim_t5"])
    pooled = config.get("pooled_projection_dim")
    if config.get("addition_embed_type") == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return Condition(
        torch.empty(n, length, width, dtype=dtype),
        None if pooled is None else torch.empty(n, pooled, dtype=dtype),
        torch.ones(n, length) if length in masked else None,
    )


class _Flash(torch.autograd.Function):
    """Attention by its shapes: GPUs keep queries, keys, values and what comes out, and no attention map."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError


class _FlashAttention(TorchFunctionMode):
    """torch's attention keeps meanwhile what it keeps on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **given)
        named = dict(zip(("query", "key", "value"), args, strict=False)) | given
        return _Flash.apply(named["query"], named["key"], named["value"])
