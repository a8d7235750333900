"""A plain learning loop, to measure ours beside: in every step it does what the methods' descriptions say.

Pictures are cropped, moved about and encoded, prompts are encoded, the UNet is gone through with LoRAs of
PEFT's own, on the text encoder too, or with the matrices of cross-attention themselves, gradients are
clipped, and AdamW takes a step, for Custom Diffusion over the whole token table. Nothing is kept from one
step to the next.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig
from PIL import Image
from torch import Tensor, nn

from conceptkit.base import conditioning
from conceptkit.base.architectures import Architecture
from conceptkit.base.conditioning import Condition
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.base.pipeline import Base
from conceptkit.base.rare_tokens import choose
from conceptkit.data import augmentation as pictures
from conceptkit.features.captions import captions
from conceptkit.learn import latent_dataset, losses
from conceptkit.learn.config import TrainConfig, config_for
from conceptkit.tuners import targets

METHODS = ("dreambooth", "custom-diffusion")
READING, ENCODING, PROMPTS, UNET, OPTIMISER = (
    "reading pictures",
    "encoding pictures",
    "encoding prompts",
    "UNet",
    "optimiser",
)
TOKEN = "<plain>"
ATTENTION_MAPS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_MAPS = ("q_proj", "k_proj", "v_proj", "out_proj")
LARGEST_NORM = 1.0


def recipe_of(method: str, steps: int | None = None) -> TrainConfig:
    """The method's recipe with the adapter and the loss that others' programs have."""
    if method == "custom-diffusion":
        return config_for(method, steps, rank=0, changes={"caption_preservation_weight": 0.0})
    return config_for(method, steps)


class Clock:
    """Seconds by what they were spent on: of all cores' time on a CPU, of the wall's on an accelerator."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent = device, dict.fromkeys((READING, ENCODING, PROMPTS, UNET, OPTIMISER), 0.0)

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        getattr(torch, self.device.type).synchronize()
        return time.perf_counter()

    @contextmanager
    def of(self, cause: str) -> Iterator[None]:
        begun = self.now()
        yield
        self.spent[cause] += self.now() - begun


class Plain:
    """One run of a method, by `step`; `base` draws with what was learned, and `word` is the subject there.

    It learns on copies of the parts that it changes, or with `alone` on the UNet itself.
    """

    def __init__(
        self,
        base: Base,
        photos: Sequence[Image.Image],
        of_class: Sequence[Image.Image],
        noun: str,
        recipe: TrainConfig,
        seed: int = 0,
        alone: bool = False,
    ) -> None:
        self.recipe, self.photos, self.of_class, self.noun = recipe, list(photos), list(of_class), noun
        self.custom = recipe.method == "custom-diffusion"
        self.reads = self.custom or bool(
            recipe.text_encoder_rank
        )  # how prompts are read changes from step to step
        self.size, self.cell = latent_dataset.picture_size(base), int(base.pipe.vae_scale_factor)
        self.schedule = schedule_of(base.pipe.scheduler)
        self.dice, self.rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        unet = (base.unet if alone else copy.deepcopy(base.unet)).requires_grad_(False)
        parts: dict[str, Any] = {**base.pipe.components, "unet": unet}
        (identifier,) = choose(base.pipe, captions(base.name), seed, 1)
        self.table: nn.Parameter | None = None
        if self.custom:
            parts |= self._with_a_token(parts["tokenizer"], parts["text_encoder"], identifier.ids[0])
            maps = targets.find(unet, Architecture.presets[recipe.target_modules])
            reading = [layer for name, layer in maps.items() if Architecture().reads_text(name)]
            for layer in reading if recipe.detach_bos else ():
                layer.register_forward_hook(_learning_nothing_at_bos)
            self.learned = [layer.weight for layer in maps.values()]
        else:
            self.learned = self.adapt(unet)
            if recipe.text_encoder_rank:
                encoder = parts["text_encoder"] = copy.deepcopy(parts["text_encoder"]).requires_grad_(False)
                self.learned += with_adapter(encoder, lora(recipe.text_encoder_rank, TEXT_MAPS))
        groups = [
            {
                "params": list(self.learned),
                "lr": recipe.learning_rate if recipe.rank else recipe.full_learning_rate,
            }
        ]
        if self.table is not None:
            groups.append({"params": [self.table], "lr": recipe.token_learning_rate})
            self.learned.append(self.table)
        for parameter in self.learned:
            parameter.requires_grad_()
        self.word = f"{TOKEN if self.custom else identifier.text} {noun}"
        pipe = type(base.pipe)(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        self.base = Base(base.name, pipe, base.fingerprint, base.family)
        self.clock = Clock(base.device)
        self.optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)

    def adapt(self, unet: nn.Module) -> list[nn.Parameter]:
        """Lay on the UNet what learns there; its parameters."""
        return with_adapter(unet, lora(self.recipe.rank, ATTENTION_MAPS))

    def _with_a_token(self, tokenizer: Any, encoder: Any, like: int) -> dict[str, Any]:
        """The parts with a token more, which begins as the token `like`; the whole table learns."""
        tokenizer, encoder = copy.deepcopy(tokenizer), copy.deepcopy(encoder).requires_grad_(False)
        tokenizer.add_tokens([TOKEN])
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        self.table = encoder.get_input_embeddings().weight
        self.row = tokenizer.convert_tokens_to_ids(TOKEN)
        with torch.no_grad():
            self.table[self.row] = self.table[like]
        return {"tokenizer": tokenizer, "text_encoder": encoder}

    def step(self) -> float:
        """One step on a batch of photos, and of class pictures beside them; its loss."""
        recipe, clock, pipe = self.recipe, self.clock, self.base.pipe
        with clock.of(READING):
            shown, masks = zip(
                *(self._look(self.photos) for _ in range(recipe.train_batch_size)), strict=True
            )
            beside = [self._look(self.of_class, own=False)[0] for _ in range(recipe.prior_batch_size)]
            pixels = torch.from_numpy(np.stack([*shown, *beside]))
            mask = torch.from_numpy(np.stack(masks)).to(self.base.device)
        with clock.of(ENCODING):
            clean = self._encode(pixels)
        n, count = recipe.train_batch_size, len(clean)
        levels = round(recipe.max_timestep_fraction * len(self.schedule))
        t = torch.randint(levels, (count,), generator=self.dice)
        noise = torch.randn(clean.shape, generator=self.dice).to(clean)
        with clock.of(PROMPTS), torch.set_grad_enabled(self.reads):
            told = [f"photo of a {self.word}"] * n + [f"photo of a {self.noun}"] * (count - n)
            told_as = conditioning.encode(pipe, told)
        with clock.of(UNET):
            loss = self._loss(clean, noise, t, told_as, mask)
            loss.backward()
        with clock.of(OPTIMISER):
            self._descend()
        return float(loss.detach())

    def _look(self, among: Sequence[Image.Image], own: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (3, size, size) of a picture, and where they count; Custom Diffusion moves photos about."""
        photo = among[int(self.rng.integers(len(among)))]
        framing = pictures.Framing() if own and self.custom else pictures.Framing(still=1.0)
        view = pictures.augment(photo, self.size, self.rng, self.cell, framing=framing)
        return view.pixels, view.mask

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        vae = self.base.pipe.vae
        found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.sample(self.dice)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        clean: Tensor = (found - shift) * vae.config.scaling_factor
        return clean

    def _loss(self, clean: Tensor, noise: Tensor, t: Tensor, told: Condition, mask: Tensor) -> Tensor:
        n = self.recipe.train_batch_size
        noisy, wanted = self.schedule.add_noise(clean, noise, t), self.schedule.target(clean, noise, t)
        found = conditioning.predict(self.base.pipe, noisy, self.schedule.told(t).to(clean.device), told)
        own = losses.masked_mse(found[:n], wanted[:n], mask)
        if len(found) == n:
            return own
        return losses.prior_weighted(
            own, (found[n:] - wanted[n:]).square().mean(), self.recipe.prior_loss_weight
        )

    def _descend(self) -> None:
        if self.table is not None and self.table.grad is not None:
            others = torch.arange(len(self.table)) != self.row
            self.table.grad[others] = 0.0
        nn.utils.clip_grad_norm_(self.learned, LARGEST_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad()


def _learning_nothing_at_bos(_: nn.Module, __: Any, made: Tensor) -> Tensor:
    """Custom Diffusion detaches the keys or values (n, T, o) of the first position."""
    return torch.cat([made[:, :1].detach(), made[:, 1:]], dim=1)


def lora(rank: int, maps: Sequence[str]) -> LoraConfig:
    """A LoRA of that rank, at full strength, on the maps with these names."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(maps))


def with_adapter(module: Any, config: PeftConfig) -> list[nn.Parameter]:
    """Lay an adapter of PEFT's own on a module; what learns of it."""
    module.add_adapter(config)
    return [p for p in module.parameters() if p.requires_grad]
