"""A base: a diffusers pipeline, seen as text features and the maps that read them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from conceptkit.base import loading
from conceptkit.base.adapters import names_at_work
from conceptkit.base.architectures import Architecture, architecture_of
from conceptkit.base.families import FAMILIES, STORYBOOK, Family, family_of, family_of_pipeline
from conceptkit.base.fingerprint import Fingerprint, fingerprint_of
from conceptkit.base.load_options import LoadOptions
from conceptkit.base.loading import USABLE
from conceptkit.base.text_features import encoders
from conceptkit.errors import BadBase, BaseMismatch
from conceptkit.registry.paths import expanded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


NOTICE_DISTANCE = 0.005
MISMATCH_DISTANCE = 0.5


@dataclass(frozen=True, eq=False)
class Base:
    """A loaded pipeline under the name the user gave it."""

    name: str
    pipe: DiffusionPipeline
    fingerprint: Fingerprint
    family: Family

    @property
    def architecture(self) -> Architecture:
        """How its denoiser is called, and where text enters it."""
        return architecture_of(self.pipe)

    @property
    def denoiser(self) -> nn.Module:
        """The UNet, or the transformer."""
        module: nn.Module = getattr(self.pipe, self.architecture.denoiser)
        return module

    @property
    def unet(self) -> nn.Module:
        """The same, as pipelines of Stable Diffusion call it."""
        return self.denoiser

    @property
    def text_site(self) -> dict[str, nn.Linear]:
        """Name -> map that reads text features, in module order."""
        return self.architecture.text_site(self.denoiser)

    @property
    def encoders(self) -> tuple[tuple[Any, Any], ...]:
        """(tokenizer, text encoder) pairs: one for Stable Diffusion, two for SDXL, up to three."""
        return encoders(self.pipe)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Map name -> its number of outputs o, in the order in which maps are stacked."""
        return {name: linear.weight.shape[0] for name, linear in self.text_site.items()}

    @property
    def width(self) -> int:
        """d, the length of one text feature."""
        return next(iter(self.text_site.values())).weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the denoiser computes in; diffusers knows of layers that are kept in less."""
        dtype: torch.dtype = self.denoiser.dtype
        return dtype


def load(
    name: str = STORYBOOK,
    *,
    device: str | None = None,
    dtype: torch.dtype | str = "fp32",
    quantization: str | None = None,
    offload: str | None = None,
) -> Base:
    """The embedded base, a diffusers folder, a .safetensors file, or a hub id, which alone asks the network.

    dtype, quantization, offload: see `LoadOptions`.
    Raises BadBase when there is nothing of that name, or no pipeline of a known family in it; BadDevice or
    BadRecipe where this machine cannot load it in that way.
    """
    if isinstance(dtype, torch.dtype):
        dtype = next((text for text, one in loading.DTYPES.items() if one == dtype), str(dtype))
    source = loading.locate(name)
    pipe = loading.read(source, LoadOptions(dtype, quantization, offload), device)
    # A folder is remembered by its full path, so that a concept finds its base from anywhere.
    own = source.local and family_of(name).weights is None
    return of(pipe, str(Path(source.path).resolve()) if own else name)


def of(pipe: DiffusionPipeline, name: str | None = None) -> Base:
    """A pipeline that is already loaded. Raises BadBase when its denoiser is of no known architecture."""
    kind = architecture_of(pipe)
    if not hasattr(pipe, "encode_prompt"):
        raise BadBase(f"{type(pipe).__name__} reads no prompts; {USABLE}")
    site = kind.text_site(getattr(pipe, kind.denoiser))
    parts = (*site.values(), *(encoder for _, encoder in encoders(pipe)))
    if any(weight.is_meta for part in parts for weight in part.parameters()):
        raise BadBase(
            f"The weights of this {type(pipe).__name__} are put away, as enable_sequential_cpu_offload() "
            "does it, and cannot be read; use enable_model_cpu_offload() or enable_group_offload() instead"
        )
    fingerprint = fingerprint_of(pipe)
    embedded = FAMILIES.get(name) if name else None
    named = embedded if embedded is not None and embedded.weights is not None else None
    name = name or _name_of(pipe, fingerprint)
    denoiser = getattr(pipe, kind.denoiser)
    by_class = family_of_pipeline(
        type(pipe).__name__, type(getattr(denoiser, "_orig_mod", denoiser)).__name__
    )
    row = _family_by_weights(fingerprint) or named or by_class or family_of(name)
    return Base(name, pipe, fingerprint, row)


def refreshed(base: Base) -> Base:
    """The base as it is now, with whatever has been put on its pipeline since it was loaded."""
    now = fingerprint_of(base.pipe)
    return base if now == base.fingerprint else replace(base, fingerprint=now)


def adapters_notice(base: Base, name: str) -> str | None:
    """One sentence where `name` is learned on a base that carries adapters of others."""
    if not (found := _adapters(base)):
        return None
    return (
        f"{base.name} carries the adapters {found} while {name} is learned: draw it with them, "
        "or take them off (unload_lora_weights) and learn it again."
    )


def _adapters(base: Base) -> str:
    """Names of the adapters of others that act on a base, as in "style, more"."""
    parts = (base.denoiser, *(encoder for _, encoder in base.encoders))
    return ", ".join(dict.fromkeys(name for part in parts for name in names_at_work(part)))


def check_fits(
    learned_on: Fingerprint, base: Base, name: str, learned_on_name: str = "its own base"
) -> str | None:
    """None when concept `name` fits the base; one sentence when the base is a near relative.

    Raises BaseMismatch when it is another architecture, or shares little but the shapes.
    """
    maps, text = learned_on.distance(base.fingerprint), learned_on.text_distance(base.fingerprint)
    distance = max(maps, text)
    if distance <= MISMATCH_DISTANCE:
        apart = [f"maps differ by {maps:.1%}"] if maps >= NOTICE_DISTANCE else []
        apart += [f"text encoders differ by {text:.1%}"] if text >= NOTICE_DISTANCE else []
        if not apart:
            return None
        told = f"{name} was learned on a relative of {base.name}: their {' and their '.join(apart)}"
        carried = f", with the adapters {adapters} on it" if (adapters := _adapters(base)) else ""
        return f"{told}{carried}"
    if not math.isinf(distance) and (adapters := _adapters(base)):
        raise BaseMismatch(
            f"{name} was learned on {learned_on_name}, and the adapters {adapters} take {base.name} "
            f"{distance:.0%} away from it; take them off (unload_lora_weights), or learn {name} again with "
            "them"
        )
    how_far = "of another architecture than" if math.isinf(distance) else f"{distance:.0%} away from"
    raise BaseMismatch(
        f"{name} was learned on {learned_on_name}, a base {how_far} {base.name}; "
        f"use {learned_on_name}, or learn {name} again on {base.name}"
    )


def _name_of(pipe: DiffusionPipeline, fingerprint: Fingerprint) -> str:
    """By where it was loaded from, else by what it is: parts put together by hand come from nowhere."""
    source = str(getattr(pipe, "name_or_path", "") or pipe.config.get("_name_or_path") or "")
    for family in FAMILIES.values():
        if family.weights is None:
            continue
        here = bool(source) and expanded(source).resolve() == family.weights.resolve()
        known = _stored_fingerprint(family.fingerprint)
        if here and known is not None and known.distance(fingerprint) > MISMATCH_DISTANCE:
            return type(pipe).__name__  # loaded from there with a UNet of another base in it
        if here or (not source and known is not None and known.same(fingerprint)):
            return family.name
    return source or type(pipe).__name__


def _family_by_weights(fingerprint: Fingerprint) -> Family | None:
    """The family whose base this is, or is a relative of."""
    for family in FAMILIES.values():
        known = _stored_fingerprint(family.fingerprint)
        if known is not None and known.distance(fingerprint) <= MISMATCH_DISTANCE:
            return family
    return None


@cache
def _stored_fingerprint(file: Path | None) -> Fingerprint | None:
    """What a file says of a base."""
    return None if file is None else Fingerprint.from_json(json.loads(file.read_text(encoding="utf-8")))
