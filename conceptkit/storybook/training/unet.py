"""The storybook's UNet, trained by v-prediction on cached latents and a text encoder that stands still."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from conceptkit.storybook.training import timed_training

WIDTH = 192
CHANNELS = (48, 96, 160)
LEARNING_RATE = 2e-3
SHALLOW = 0.5
"""Share of the minutes in which the UNet has half its layers."""
REDRAWN_AT_ONCE = 64


def scheduler() -> DDIMScheduler:
    """Zero terminal signal (2305.08891): at 16x16 a latent's mean would otherwise show through the noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder of three layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def unet(layers: int = 2) -> UNet2DConditionModel:
    """An untrained UNet with so many layers in each block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=layers,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=8,
    )


def deepened(shallow: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same function with two layers in each block instead of one (Net2DeeperNet, 1511.05641, 2.3).

    A step of the shallow one takes two thirds of the time. New layers begin as the identity: their last
    projection is zero, and where a skip connection comes in they let it pass by.
    """
    deep = unet(2)
    # of the three layers on the way up, the last takes the skip connection of the level above, as the
    # second of two did; the one in the middle is new
    moved = {_LAST.sub(r"\1.2.", name): value for name, value in shallow.state_dict().items()}
    deep.load_state_dict(deep.state_dict() | moved)
    with torch.no_grad():
        for name, module in deep.named_modules():
            if not _NEW.fullmatch(name):
                continue
            last = module.proj_out if isinstance(module, Transformer2DModel) else module.conv2
            last.weight.zero_()  # type: ignore[union-attr, operator]
            last.bias.zero_()  # type: ignore[union-attr, operator]
            if getattr(module, "conv_shortcut", None) is not None:
                width = module.out_channels
                module.conv_shortcut.weight.copy_(torch.eye(width, module.in_channels)[..., None, None])  # type: ignore
                module.conv_shortcut.bias.zero_()  # type: ignore
    return deep


_LAST = re.compile(r"^(up_blocks\.\d+\.(?:resnets|attentions))\.1\.")
_NEW = re.compile(r"(?:down|up)_blocks\.\d+\.(?:resnets|attentions)\.1")


SCALES = {1: 1.0, 2: 2.0, 4: 4.0}
"""How many cells wide the averages are that the loss looks at, and the weight of each."""


def coarse_losses(error: Tensor) -> Tensor:
    """Squared errors (n,) of (n, 8, 16, 16), counted again averaged over 2x2 and 4x4 cells.

    The minimum is the same, but what neighbouring cells have in common, the shape of things, is learned
    before their detail (simple diffusion, 2301.11093, section 3.2).
    """
    return sum(  # type: ignore[return-value]
        w * F.avg_pool2d(error, k).square().mean((1, 2, 3)) for k, w in SCALES.items()
    )


def v_losses(predicted: Tensor, clean: Tensor, noise: Tensor, t: Tensor, schedule: DDIMScheduler) -> Tensor:
    """v-prediction losses (n,) of (n, 8, 16, 16), at several scales."""
    return coarse_losses(predicted.float() - schedule.get_velocity(clean, noise, t))


class Level(nn.Module):
    """What the loss usually is at each noise, so that no noise drowns the others (EDM2, 2312.02696, 2.2)."""

    mean: Tensor

    def __init__(self, bins: int = 20, decay: float = 0.98) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(bins))
        self.decay = decay

    def forward(self, losses: Tensor, t: Tensor) -> Tensor:
        """Mean of losses (n,) at timesteps (n,) in 0..999, each over the usual one of its bin."""
        self.mean = self.mean.to(losses.device)
        bins = t * len(self.mean) // 1000
        usual = self.mean[bins]
        count = torch.bincount(bins, minlength=len(self.mean))
        total = torch.zeros_like(self.mean).index_add(0, bins, losses.detach())
        here = torch.where(count > 0, total / count.clamp(min=1), self.mean)
        self.mean = torch.lerp(here, self.mean, self.decay ** count.float())
        return (losses / usual).mean()


def timesteps(count: int, anywhere: float = 0.2, mean: float = 0.4) -> Tensor:
    """Timesteps, mostly where a picture takes shape: logit-normal (Esser et al. 2024, 3.1), some uniform."""
    shaped = (1000 * (mean + torch.randn(count)).sigmoid()).long().clamp(max=999)
    return torch.where(torch.rand(count) < anywhere, torch.randint(0, 1000, (count,)), shaped)


def train(
    text: CLIPTextModel,
    latents: Tensor,
    ids: Tensor,
    minutes: float,
    cache: Path,
    batch: int = 128,
    weights: np.ndarray | None = None,
    onward: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:
    """latents float16 (n, 8, 16, 16); ids int (n, variants, length); weights (n,): how often each is seen.

    The text encoder stands still, and its device is where the UNet is trained. For a SHALLOW share of the
    minutes the UNet has half its layers; with a trained one to go `onward` from, it is trained all the while
    as it is. It is not compiled: on a CPU, torch.compile of torch 2.13 gives everything below the last
    upsampling gradients of zero, silently.
    """
    torch.manual_seed(5)
    text, device = text.requires_grad_(False).eval(), text.device.type
    latents, ids = latents.to(device), ids.to(device)
    schedule = scheduler()
    schedule.alphas_cumprod = schedule.alphas_cumprod.to(device)
    n, variants = ids.shape[:2]
    level = Level()
    chance = (weights / weights.sum()).cumsum() if weights is not None else None

    def loss_of(model: UNet2DConditionModel, step: int) -> Tensor:
        rng = np.random.default_rng((41, step))
        torch.manual_seed(step)
        if chance is None:
            picks = torch.from_numpy(rng.integers(n, size=batch))
        else:
            picks = torch.from_numpy(np.searchsorted(chance, rng.uniform(size=batch)).clip(max=n - 1))
        picks = picks.to(device)
        clean = latents[picks].float()
        words = ids[picks, torch.from_numpy(rng.integers(variants, size=batch)).to(device)].long()
        noise = torch.randn_like(clean)
        t = timesteps(batch).to(device)
        with timed_training.half(device):
            with torch.no_grad():
                context = text(input_ids=words).last_hidden_state
            noisy = schedule.add_noise(clean, noise, t).contiguous(memory_format=torch.channels_last)
            predicted = model(noisy, t, context).sample
        return level(v_losses(predicted, clean, noise, t, schedule), t)

    def trained(model: UNet2DConditionModel, minutes: float, checkpoint: str) -> UNet2DConditionModel:
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device == "cpu":  # where the fused attention's backward is the slower one
            model.set_attn_processor(AttnProcessor())
        learned = timed_training.train(
            model,
            functools.partial(loss_of, model),
            minutes=minutes,
            lr=LEARNING_RATE,
            checkpoint=cache / checkpoint,
            decay=0.996,
            hold=0.4,
            muon=True,
        )
        return learned.cpu()  # type: ignore[return-value]

    if onward is not None:
        return trained(onward, minutes, "unet.pt")
    rough = trained(unet(layers=1), minutes * SHALLOW, "unet-shallow.pt")
    return trained(deepened(rough), minutes * (1 - SHALLOW), "unet.pt")


@torch.no_grad()
def redrawn(
    model: UNet2DConditionModel,
    text: CLIPTextModel,
    latents: Tensor,
    ids: Tensor,
    empty: Tensor,
    farthest: int = 320,
    steps: int = 12,
    guidance: float = 3.5,
) -> Tensor:
    """Latents (n, 8, 16, 16), each noised to a timestep up to `farthest` and drawn again by its caption.

    The same picture, with what the UNet gets wrong in it (SDEdit, 2108.01073). ids (n, length) of captions,
    empty (length,) of none.
    """
    torch.manual_seed(6)
    schedule = scheduler()
    schedule.set_timesteps(steps)
    times = [int(t) for t in schedule.timesteps if t <= farthest]
    out = []
    for k in track(range(0, len(latents), REDRAWN_AT_ONCE), "redrawing"):
        clean = latents[k : k + REDRAWN_AT_ONCE].float()
        # every batch begins at another of the timesteps
        rest = times[(k // REDRAWN_AT_ONCE) % len(times) :]
        z = schedule.add_noise(clean, torch.randn_like(clean), torch.tensor(rest[:1]))
        words = torch.cat([empty.expand(len(clean), -1), ids[k : k + REDRAWN_AT_ONCE]]).long()
        with timed_training.half():
            context = text(input_ids=words).last_hidden_state
            for t in rest:
                twice = torch.cat([z, z]).contiguous(memory_format=torch.channels_last)
                plain, told = model(twice, t, context).sample.float().chunk(2)
                z = schedule.step(plain + guidance * (told - plain), t, z).prev_sample
        out.append(z.half())
    return torch.cat(out)
