"""A base: a diffusers pipeline, seen as text features and its cross-attention key and value maps."""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conceptkit.concept import SKETCH_SIZE, Fingerprint
from conceptkit.errors import BadBase, BaseMismatch

STORYBOOK = "storybook"
STORYBOOK_GUIDANCE, STORYBOOK_PAG = 3.5, 1.5
NOTICE_DISTANCE = 0.005
MISMATCH_DISTANCE = 0.5
USABLE = "use a Stable Diffusion or SDXL pipeline"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, eq=False)
class Base:
    """A loaded pipeline under the name the user gave it."""

    name: str
    pipe: Any
    fingerprint: Fingerprint

    @property
    def unet(self) -> nn.Module:
        return self.pipe.unet

    @property
    def encoders(self) -> tuple[tuple[Any, Any], ...]:
        """(tokenizer, text encoder) pairs: one for Stable Diffusion, two for SDXL."""
        return encoders(self.pipe)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Map name -> its number of outputs o, in the order in which maps are stacked."""
        return {name: linear.weight.shape[0] for name, linear in kv_maps(self.unet).items()}

    @property
    def width(self) -> int:
        """d, the length of one text feature."""
        return next(iter(kv_maps(self.unet).values())).weight.shape[1]

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def guidance(self) -> float:
        """The guidance scale that suits the base (classifier-free guidance, 2207.12598)."""
        return STORYBOOK_GUIDANCE if self.name == STORYBOOK else 7.5

    @property
    def pag(self) -> float:
        """The scale of perturbed-attention guidance that suits the base (2403.17377); 0 is none."""
        return STORYBOOK_PAG if self.name == STORYBOOK else 0.0

    @property
    def pag_layers(self) -> tuple[str, ...]:
        """Where self-attention is perturbed for it, as diffusers names layers: all, or as the paper does."""
        return ("attn1",) if self.name == STORYBOOK else ("mid",)

    @property
    def side_by_side(self) -> bool:
        """Whether several things are better drawn in a window each: the embedded base knows one at a time."""
        return self.name == STORYBOOK

    @property
    def reads_apart(self) -> bool:
        """Whether words of several concepts in one frame are better read apart: measured on this base."""
        return self.name == STORYBOOK


@dataclass(frozen=True, eq=False)
class Features:
    """What the UNet reads of some prompts: hidden (n, T, d) float32 on the CPU, first tokenizer's ids (n, T),
    and eot (n,), the position of the first end-of-text token."""

    hidden: Tensor
    ids: Tensor
    eot: Tensor


def load(name: str = STORYBOOK, *, device: str | None = None, dtype: torch.dtype = torch.float32) -> Base:
    """The embedded base, a local diffusers folder, or a hub id; only a hub id reaches for the network.

    Raises BadBase when there is nothing of that name, or no pipeline with cross-attention in it.
    """
    from diffusers import AutoPipelineForText2Image, DiffusionPipeline

    source, local = _locate(name)
    try:
        with quiet():
            config = DiffusionPipeline.load_config(source, local_files_only=local)
            # Pipelines that have a checker accept its absence; the others warn about unknown arguments.
            checker = {"safety_checker": None, "requires_safety_checker": False}
            pipe = AutoPipelineForText2Image.from_pretrained(
                source,
                dtype=dtype,
                local_files_only=local,
                **(checker if "safety_checker" in config else {}),
            )
    except Exception as error:  # loaders raise nearly anything at damaged files
        advice = USABLE if local else "there is no such folder here, so check the id and the network"
        raise BadBase(f"{name!r} cannot be read as a text-to-image pipeline; {advice}") from error
    pipe.set_progress_bar_config(disable=True)
    # A folder is remembered by its full path, so that a concept finds its base from anywhere.
    folder = local and name != STORYBOOK
    return of(pipe.to(device) if device else pipe, str(Path(source).resolve()) if folder else name)


def of(pipe: Any, name: str | None = None) -> Base:
    """A pipeline that is already loaded. Raises BadBase when it has no text-conditioned UNet."""
    if getattr(pipe, "unet", None) is None or not hasattr(pipe, "encode_prompt"):
        raise BadBase(f"{type(pipe).__name__} has no UNet that reads text; {USABLE}")
    return Base(name or _name_of(pipe), pipe, fingerprint(pipe))


def kv_maps(unet: nn.Module) -> dict[str, nn.Linear]:
    """Name -> Linear of every key and value map of the cross-attentions, in module order.

    Under a tuner layer it is the frozen map, and the name is the one it has without the tuner.
    Raises BadBase when there is none, or when they read features of different widths.
    """
    maps: dict[str, Any] = {}
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            maps[name] = module
            while hasattr(maps[name], "base_layer"):
                maps[name] = maps[name].base_layer
    widths = {linear.weight.shape[1] for linear in maps.values()}
    if len(widths) != 1:
        found = f"text features of {len(widths)} widths" if widths else "no cross-attention"
        raise BadBase(f"{type(unet).__name__} has {found}; {USABLE}")
    return maps


def encoders(pipe: Any) -> tuple[tuple[Any, Any], ...]:
    """The pipeline's (tokenizer, text encoder) pairs."""
    names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    pairs = [(getattr(pipe, first, None), getattr(pipe, second, None)) for first, second in names]
    return tuple(pair for pair in pairs if None not in pair)


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str], batch: int = 32) -> Features:
    """Text features of prompts through the pipeline's own `encode_prompt`: one road for all architectures."""
    tokenizer = encoders(pipe)[0][0]
    hidden, ids = [], []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        encoded = pipe.encode_prompt(
            prompt=chunk,
            device=pipe._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        hidden.append(encoded[0].float().cpu())
        ids.append(token_ids(pipe, tokenizer, chunk))
    tokens = torch.cat(ids)
    ends = (tokens == tokenizer.eos_token_id).int()
    return Features(torch.cat(hidden), tokens, ends.argmax(dim=1))


def token_ids(pipe: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """(n, T) ids as the pipeline's `encode_prompt` makes them, tokens of several vectors spelled out."""
    if hasattr(pipe, "maybe_convert_prompt"):
        prompts = pipe.maybe_convert_prompt(list(prompts), tokenizer)
    length = tokenizer.model_max_length
    return tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def fingerprint(pipe: Any) -> Fingerprint:
    """What this base is; tokens added to it and adapters put on it do not count."""
    exact = hashlib.sha256()
    sketch, energy = torch.zeros(SKETCH_SIZE), 0.0
    for name, linear in kv_maps(pipe.unet).items():
        weight = linear.weight.detach().to("cpu", torch.float16)
        exact.update(name.encode())
        exact.update(weight.numpy().tobytes())
        weight = weight.float()
        left = _signs(f"{name} outputs", weight.shape[0])
        right = _signs(f"{name} inputs", weight.shape[1])
        sketch += ((left @ weight) * right).sum(dim=1)
        energy += float(weight.square().sum())
    for tokenizer, encoder in encoders(pipe):
        table = encoder.get_input_embeddings().weight.detach()[: tokenizer.vocab_size]
        exact.update(table.to("cpu", torch.float16).numpy().tobytes())
    scale = (SKETCH_SIZE * max(energy, 1e-30)) ** 0.5
    return Fingerprint(architecture(pipe), exact.hexdigest()[:16], tuple((sketch / scale).tolist()))


def architecture(pipe: Any) -> str:
    """16 hex digits over map names, shapes and text encoder sizes; works on the meta device."""
    value = {
        "maps": [[name, *linear.weight.shape] for name, linear in kv_maps(pipe.unet).items()],
        "encoders": [
            [tokenizer.vocab_size, encoder.config.hidden_size, encoder.config.num_hidden_layers]
            for tokenizer, encoder in encoders(pipe)
        ],
    }
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def check_fits(
    learned_on: Fingerprint, base: Base, name: str, learned_on_name: str = "its own base"
) -> str | None:
    """None when concept `name` fits the base; one sentence when the base is a near relative.

    Raises BaseMismatch when it is another architecture, or shares little but the shapes.
    """
    distance = learned_on.distance(base.fingerprint)
    if distance <= MISMATCH_DISTANCE:
        if distance < NOTICE_DISTANCE:
            return None
        return f"{name} was learned on a relative of {base.name}: their maps differ by {distance:.1%}"
    apart = "of another architecture than" if math.isinf(distance) else f"{distance:.0%} away from"
    raise BaseMismatch(
        f"{name} was learned on {learned_on_name}, a base {apart} {base.name}; "
        f"use {learned_on_name}, or learn {name} again on {base.name}"
    )


def captions(base_name: str) -> list[str]:
    """Captions for regularisation: the storybook's own, or everyday ones for any other base."""
    package, name = ("storybook", "captions.txt") if base_name == STORYBOOK else ("captions", "general.txt")
    return files(f"conceptkit.{package}").joinpath(name).read_text(encoding="utf-8").splitlines()


def _locate(name: str) -> tuple[str, bool]:
    """(where to load from, whether that is on this machine)."""
    if name == STORYBOOK:
        return _storybook_path(), True
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise BadBase(f"The folder {name!r} is no diffusers pipeline; give one with a model_index.json")
        return str(folder), True
    if HUB_ID.fullmatch(name) and not folder.exists():
        return name, False
    raise BadBase(f"There is no base {name!r}; give a diffusers folder, owner/model or {STORYBOOK!r}")


def _storybook_path() -> str:
    try:
        from conceptkit import storybook

        return str(storybook.path())  # type: ignore[attr-defined,unused-ignore]
    except (ImportError, AttributeError) as error:
        raise BadBase("This installation lacks the storybook base; install conceptkit again") from error


def _name_of(pipe: Any) -> str:
    source = str(getattr(pipe, "name_or_path", "") or pipe.config.get("_name_or_path") or "")
    with contextlib.suppress(BadBase):
        if source and source == _storybook_path():
            return STORYBOOK
    return source or type(pipe).__name__


def _signs(label: str, size: int) -> Tensor:
    """(64, size) of +1 and -1, from a hash: the same on every machine and with every library version."""
    octets = hashlib.shake_256(label.encode()).digest(SKETCH_SIZE * size // 8)
    bits = np.unpackbits(np.frombuffer(octets, np.uint8)).reshape(SKETCH_SIZE, size)
    return torch.from_numpy(bits).float() * 2 - 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the libraries underneath while a pipeline loads."""
    import diffusers.utils.logging as below
    import transformers.utils.logging as beside

    shown = [(library, library.is_progress_bar_enabled()) for library in (below, beside)]
    for library, _ in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was_shown in shown:
            if was_shown:
                library.enable_progress_bar()
