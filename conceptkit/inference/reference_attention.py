"""Drawing with a reference photo: before each step the UNet looks at it, noised as the picture is.

Only rows of the batch whose prompt holds the concept's word are shown the photo. So the other half of
classifier-free guidance is the base alone, and guidance strengthens word and photo together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conceptkit.base.noise_schedule import schedule_of
from conceptkit.concepts.reference import Reference
from conceptkit.inference.token_owners import TokenOwners
from conceptkit.rng import hash_of
from conceptkit.tuners.image_attention import ImageAttention

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from conceptkit.inference.confinement import Confinement

OF_THE_PICTURE = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
"""What other networks say of the picture that is drawn, and not of the photo."""


def attend_to_reference(
    pipe: DiffusionPipeline,
    reference: Reference,
    reading: TokenOwners,
    confinement: Confinement | None = None,
) -> Callable[[], None]:
    """Let the pipeline's UNet look at a photo in every step; gives the way back.

    `reading` listens to the UNet already, for one concept by its tokens. Raises BadBase and BaseMismatch when
    the UNet is not one that the maps are for, or its scheduler has no known noise.

    confinement: says in which part of a picture the photo is looked at, while one is drawn in stages.
    """
    unet, schedule = pipe.unet, schedule_of(pipe.scheduler)
    attention = ImageAttention(unet, reference.maps)
    clean = reference.latent.unsqueeze(0).float()
    # The same noise in every picture and step: what a seed draws depends on nothing else.
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(hash_of("reference")))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        attention.show(None)
        scene, where = reading.scene, None
        given = {**inspect.signature(type(unet).forward).bind(module, *args, **kwargs).arguments}
        del given["self"]
        if confinement and (part := confinement.part(reading.names[0], given)):
            given["encoder_hidden_states"], own_scene, where = part
            scene = own_scene or scene
        rows = [int(row) for row in scene.mentioned[:, 0].nonzero()]
        if not rows or not scene.scale:
            return
        prompts = [scene.key[1 + row] for row in rows]
        distinct = list(dict.fromkeys(prompts))
        of = torch.tensor([distinct.index(prompt) for prompt in prompts])
        first = torch.tensor([rows[prompts.index(prompt)] for prompt in distinct])
        sample, told = given["sample"], torch.as_tensor(given["timestep"]).flatten()
        given = {name: _of_rows(value, first, len(sample)) for name, value in given.items()}
        told = told if len(told) == 1 else told[first.to(told.device)]
        t = schedule.step_of(told.cpu()).expand(len(first))
        size = (len(first), *clean.shape[1:])
        photo = schedule.add_noise(clean.expand(size), noise.expand(size), t).to(sample)
        given |= {"sample": photo, "timestep": told.to(sample.device), "return_dict": False}
        given = {name: value for name, value in given.items() if name not in OF_THE_PICTURE}
        word = (scene.owners[first.to(scene.owners.device)] == 0).float()
        own = (word / word.sum(dim=1, keepdim=True).clamp_min(1)).unsqueeze(2)
        with confinement.staged(None) if confinement else nullcontext():
            seen = attention.look(lambda: unet.forward(**given), own)
        attention.show(seen.among(torch.tensor(rows), of, scene.scale, where))

    def after(*_: Any) -> None:
        attention.show(None)

    remove = attention.install()
    handles = [
        unet.register_forward_pre_hook(before, with_kwargs=True),
        unet.register_forward_hook(after, always_call=True),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        remove()

    return undo


def _of_rows(value: Any, rows: Tensor, count: int) -> Any:
    """An argument of the UNet for these rows of its batch of `count`."""
    if isinstance(value, Tensor) and value.ndim and len(value) == count:
        return value[rows.to(value.device)]
    if isinstance(value, list | tuple):
        return type(value)(_of_rows(part, rows, count) for part in value)
    if isinstance(value, dict):
        return {name: _of_rows(part, rows, count) for name, part in value.items()}
    return value
