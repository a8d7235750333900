"""Prior sets keep a class as it is: drawn by the frozen base, once per base and class, or the user's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from conceptkit.base.adapters import state_of_adapters
from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import encoders
from conceptkit.data.photos import PhotoSet
from conceptkit.features.captions import captions
from conceptkit.learn import latent_dataset
from conceptkit.learn.distributed import DistributedContext
from conceptkit.learn.subject import Subject
from conceptkit.learn.train_config import TrainConfig
from conceptkit.safetensors_header import read_metadata

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry


BATCH = 8


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Latents (n, c, h, w) that the base drew, and the prompt of each."""

    latents: Tensor
    prompts: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Safetensors, in half precision."""
        header = {"conceptkit": json.dumps({"prompts": self.prompts})}
        return safetensors.torch.save({"latents": self.latents.half().contiguous()}, header)

    @classmethod
    def from_bytes(cls, data: bytes) -> ClassImages:
        """What `to_bytes` wrote."""
        header = read_metadata(data)
        return cls(safetensors.torch.load(data)["latents"].float(), tuple(header["prompts"]))


def prompts_for(noun: str, family: str, count: int, instance_prompt: str = "") -> tuple[str, ...]:
    """Captions that name the class: from the family's own as far as they reach, else "photo of a NOUN".

    instance_prompt: of a recipe that has one prompt for all photos; then it is that of the class too.
    """
    if instance_prompt:
        return (instance_prompt.format(noun),) * count
    naming = [
        text
        for text in captions(family)
        if noun in text.split() and text.split().count("a") + text.split().count("an") < 3
    ]
    half = naming[: count // 2]
    return (*half, *([f"photo of a {noun}"] * (count - len(half))))


def of_class(
    base: Base,
    noun: str,
    recipe: TrainConfig,
    registry: Registry | None,
    progress: Callable[[int, int], None],
) -> ClassImages:
    """The class's prior set, from the registry or drawn now; `progress(done, total)` follows the drawing."""
    prompts = prompts_for(noun, base.family.name, recipe.num_class_images, recipe.instance_prompt)
    drawn_by = json.dumps(
        [prompts, recipe.class_image_steps, recipe.class_image_guidance_scale, _sampler(base)]
    )
    key = f"prior/{weights_digest(base)}/{hashlib.sha256(drawn_by.encode()).hexdigest()[:16]}"
    stored = registry.get_asset(key) if registry else None
    if stored is None:
        stored = ClassImages(_draw(base, prompts, recipe, progress), prompts).to_bytes()
        if registry:
            registry.put_asset(key, stored)
    return ClassImages.from_bytes(stored)


def of_photos(base: Base, photos: PhotoSet, noun: str, instance_prompt: str = "") -> ClassImages:
    """Pictures of the class that the user has: whole, with their captions or else their recipe's prompt.

    instance_prompt: with {} for the noun; "": "photo of a NOUN".
    """
    usual = instance_prompt or None
    given = photos.captions or (None,) * len(photos.pictures)
    contexts = [text.replace("{", "{{").replace("}", "}}") if text else usual for text in given]
    shown = latent_dataset.still_dataset(base, photos, noun, contexts=contexts)
    return ClassImages(
        shown.latents.half().float().cpu(), tuple(shown.prompts[int(k)] for k in shown.prompt_of)
    )


def of_photo_sets(
    base: Base, subjects: Sequence[Subject], instance_prompt: str = ""
) -> dict[str, ClassImages]:
    """The subjects' own class images, by class noun; instance_prompt: the recipe's, or ""."""
    found: dict[str, list[ClassImages]] = {}
    for subject in subjects:
        if subject.class_images is not None and subject.noun is not None:
            found.setdefault(subject.noun, []).append(
                of_photos(base, subject.class_images, subject.noun, instance_prompt)
            )
    return {noun: joined(sets) for noun, sets in found.items()}


def _of_several(progress: Callable[[int, int], None], k: int, sets: int) -> Callable[[int, int], None]:
    """The progress of set k, as progress of all."""
    return lambda done, total: progress(k * total + done, sets * total)


def undrawn(subjects: Sequence[Subject], recipe: TrainConfig, given: Collection[str]) -> list[str]:
    """The classes of subjects, each once, that the base must draw: those the user gave no pictures of."""
    if recipe.prior_source == "base_prediction":
        return []
    if not (recipe.prior_loss_weight and recipe.prior_batch_size and recipe.num_class_images):
        return []
    return [noun for noun in dict.fromkeys(s.noun for s in subjects) if noun and noun not in given]


def of_subjects(
    base: Base,
    subjects: Sequence[Subject],
    recipe: TrainConfig,
    registry: Registry | None,
    progress: Callable[[int, int], None],
    distributed: DistributedContext,
    given: Mapping[str, ClassImages],
) -> ClassImages | None:
    """One set for all the classes of subjects: the given one of a class, or else what the base draws.

    None where the recipe wants no prior, or no subject has a class.
    """
    if not (recipe.prior_loss_weight and recipe.prior_batch_size):
        return None
    drawn, sets = undrawn(subjects, recipe, given), list(given.values())
    for k, noun in enumerate(drawn):
        with distributed.in_turn():
            sets.append(of_class(base, noun, recipe, registry, _of_several(progress, k, len(drawn))))
    return joined(sets) if sets else None


def joined(sets: Sequence[ClassImages]) -> ClassImages:
    """All pictures of several sets in one."""
    return ClassImages(
        torch.cat([one.latents for one in sets]), tuple(text for one in sets for text in one.prompts)
    )


def weights_digest(base: Base) -> str:
    """16 hex digits over all weights that a drawing depends on, in half precision: UNet and text encoders.

    The fingerprint of a base is of its key and value maps and token table alone, so that a fine-tune is known
    for a relative; what it draws is another matter.
    """
    digest = hashlib.sha256()
    for module in (base.denoiser, *(encoder for _, encoder in encoders(base.pipe))):
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float16).contiguous().view(torch.uint8).numpy())
        digest.update(state_of_adapters(module).encode())
    return digest.hexdigest()[:16]


def _sampler(base: Base) -> str:
    """The scheduler by what it draws with."""
    scheduler = base.pipe.scheduler
    kept = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return json.dumps([type(scheduler).__name__, kept], sort_keys=True, default=str)


def _draw(
    base: Base, prompts: tuple[str, ...], recipe: TrainConfig, progress: Callable[[int, int], None]
) -> Tensor:
    drawn = []
    for start in range(0, len(prompts), BATCH):
        chunk = list(prompts[start : start + BATCH])
        seeds = [int(np.random.default_rng((7, start + k)).integers(2**31)) for k in range(len(chunk))]
        result = base.pipe(
            prompt=chunk,
            num_inference_steps=recipe.class_image_steps,
            **base.architecture.guided({"guidance_scale": recipe.class_image_guidance_scale}, len(chunk)),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type=base.architecture.latent_output,
            **base.architecture.draw_options(base.pipe),
        )
        drawn.append(base.architecture.drawn_latents(base.pipe, result.images).float().cpu())
        progress(min(start + BATCH, len(prompts)), len(prompts))
    return torch.cat(drawn)
