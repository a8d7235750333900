"""The second storybook base: joint attention and rectified flow, of the first one's latents and captions.

A transformer of Stable Diffusion 3's class (Esser et al. 2024, 2403.03206) learns velocities that the first
base's UNet predicts, on shards that `distillation` writes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from conceptkit.storybook.training import distillation, timed_training
from conceptkit.storybook.training import unet as unets

WIDTH, HEADS, LAYERS = 160, 5, 6
LEARNING_RATE = 2e-3
DECAY = 0.998
"""Of the moving average of the weights, a step."""
MOST_ZEROS = 256
"""Rows of zeros that StableDiffusion3Pipeline puts in the place of a T5 encoder that is not there."""


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths, times not shifted: a picture of 16 x 16 latents is small."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def transformer(text_width: int, layers: int = LAYERS, width: int = WIDTH) -> SD3Transformer2DModel:
    """An untrained transformer that draws nothing yet: its gates are closed (adaLN-Zero, 2212.09748, 3.2).

    text_width: of both text encoders together.
    """
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=layers,
        attention_head_dim=width // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=text_width,
        caption_projection_dim=width,
        pooled_projection_dim=text_width,
        pos_embed_max_size=16,
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or "norm1" in name or "norm_out" in name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


class JointAttention:
    """Joint attention in which the last text token counts `copies` times.

    Equal tokens stay equal through all blocks, so one of them with log(copies) on its logits stands for all:
    a model learns what 256 rows of zeros do to it at the price of one. Without a fused kernel, whose backward
    is the slower one on a CPU.
    """

    copies = 1

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (n, tokens, width) of picture and text, in and out."""
        pairs = (
            (attn.to_q, attn.add_q_proj),
            (attn.to_k, attn.add_k_proj),
            (attn.to_v, attn.add_v_proj),
        )
        query, key, value = (
            torch.cat([of_picture(hidden_states), of_text(encoder_hidden_states)], 1)  # type: ignore[operator]
            .unflatten(-1, (attn.heads, -1))
            .transpose(1, 2)
            for of_picture, of_text in pairs
        )
        logits = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        if self.copies != 1:
            last = torch.zeros(logits.shape[-1], dtype=logits.dtype)
            last[-1] = math.log(self.copies)
            logits = logits + last
        out = (logits.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        picture, text = out.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        if not attn.context_pre_only:
            text = attn.to_add_out(text)  # type: ignore[operator]
        return attn.to_out[0](picture), text  # type: ignore[index, operator]


def copies(rng: np.random.Generator) -> int:
    """Of zeros behind the text: none in half of all batches, MOST_ZEROS in a quarter, between in the rest."""
    kind = rng.integers(4)
    if kind < 2:
        return 0
    return MOST_ZEROS if kind == 2 else round(MOST_ZEROS ** rng.uniform())


@torch.no_grad()
def conditions(encoders: tuple[CLIPTextModelWithProjection, ...], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Context (n, length, width) and pooled text (n, width), as StableDiffusion3Pipeline encodes CLIP's."""
    read = [encoder(input_ids=ids, output_hidden_states=True) for encoder in encoders]
    return torch.cat([out.hidden_states[-2] for out in read], -1), torch.cat(
        [out.text_embeds for out in read], -1
    )


def predict(
    model: SD3Transformer2DModel,
    batch: distillation.Batch,
    s: Tensor,
    text: tuple[Tensor, Tensor],
    zeros: int,
) -> Tensor:
    """Velocities (n, 8, 16, 16) at flow times s (n,) with so many rows of zeros behind the text.

    The model attends by one JointAttention.
    """
    context, pooled = text
    if zeros:
        context = torch.cat([context, torch.zeros_like(context[:, :1])], 1)
    next(iter(model.attn_processors.values())).copies = max(zeros, 1)
    noisy = batch.noisy.contiguous(memory_format=torch.channels_last)
    return model(noisy, context, pooled, 1000 * s, return_dict=False)[0]  # type: ignore[no-any-return]


def train(
    model: SD3Transformer2DModel,
    encoders: tuple[CLIPTextModelWithProjection, ...],
    shards: distillation.Shards,
    schedule: DDIMScheduler,
    core_minutes: float,
    checkpoint: Path,
    batch: int = 128,
) -> SD3Transformer2DModel:
    """Train for so many minutes of processor time, all threads counted; returns the moving average.

    schedule: the teacher's. It goes on from `checkpoint`, where there is one.
    """
    model.set_attn_processor(JointAttention())
    both = nn.ModuleDict({"transformer": model, "level": unets.Level()})
    both.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    times = distillation.flow_times(schedule)
    for encoder in encoders:
        encoder.requires_grad_(False).eval()
    shards.refresh()

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((51, step))
        if step % 50 == 0:
            shards.refresh()
        seen = shards.sample(rng, batch)
        with timed_training.half():
            text = conditions(encoders, seen.ids)
            predicted = predict(model, seen, times[seen.timestep], text, copies(rng))
        level = both["level"]
        if step % 200 == 0:
            usual = " ".join(f"{x:.4f}" for x in level.mean[1::4].tolist())
            timed_training.console.print(f"step {step}, {len(shards.files)} shards, level {usual}")
        return level(unets.coarse_losses(predicted.float() - seen.velocity), seen.timestep)

    learned = timed_training.train(
        both,
        loss_of,
        minutes=timed_training.CoreMinutes(core_minutes),
        lr=LEARNING_RATE,
        checkpoint=checkpoint,
        decay=DECAY,
        hold=0.4,
        muon=True,
    )
    return learned["transformer"]  # type: ignore[index]
