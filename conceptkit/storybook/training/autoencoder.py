"""The storybook's AutoencoderKL: 64x64 pictures to 8 x 16 x 16 latents, each channel of variance 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from conceptkit.storybook.training import timed_training

CHANNELS, LAYERS = (16, 48, 96), 1
ENLARGED = (32, 48, 96), 3


def build(channels: tuple[int, ...] = CHANNELS, layers: int = LAYERS) -> AutoencoderKL:
    """An untrained autoencoder: 8 latent channels, a quarter of the picture's sides."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=8,
        norm_num_groups=2,  # more groups lose flat colours
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss(vae: AutoencoderKL, x: Tensor, noise: float = 0.02) -> Tensor:
    """L1 on pixels and their differences; the latents are kept near unit size and carry almost no noise."""
    z = vae.encode(x).latent_dist.mean
    y = vae.decode(z + noise * torch.randn_like(z)).sample.float()
    return redraw_loss(y, x) + 1e-4 * z.float().square().mean()


def redraw_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 on pixels and on their differences, and a squared error that minds the worst of them."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(_slopes(y), _slopes(x), strict=True))
    return F.l1_loss(y, x) + 0.5 * edges + 2.0 * F.mse_loss(y, x)


def train(pictures: np.ndarray, minutes: float, cache: Path) -> AutoencoderKL:
    """Train an autoencoder on crops of pictures (n, 3, h, w)."""
    torch.manual_seed(1)
    vae = build()
    batch, crop = 32, 32

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((21, step))
        torch.manual_seed(step)
        picks = np.sort(rng.integers(len(pictures), size=batch))
        ys, xs = rng.integers(0, 64 - crop + 1, (2, batch))
        tiles = np.stack(
            [pictures[k, y : y + crop, x : x + crop] for k, y, x in zip(picks, ys, xs, strict=True)]
        )
        with timed_training.half():
            return loss(vae, to_tensor(tiles))

    vae = timed_training.train(
        vae, loss_of, minutes=minutes, lr=2e-3, checkpoint=cache / "vae.pt", decay=0.995, hold=0.3
    )  # type: ignore[assignment]
    standardise(vae, to_tensor(pictures[:2000]))
    return vae


@torch.no_grad()
def enlarged(
    small: AutoencoderKL, channels: tuple[int, ...] = ENLARGED[0], layers: int = ENLARGED[1]
) -> AutoencoderKL:
    """The same function with more layers, and twice the channels where `channels` says so.

    Its latents stay what a UNet knows. A new layer begins as the identity (Net2DeeperNet), and a channel that
    is now two halves what it gives to either (Net2WiderNet, 1511.05641, section 2). The two stand next to
    each other, so each is still normalised in its group. One that is as large already stays as it is.
    """
    large = build(channels, layers)
    old, state = small.state_dict(), large.state_dict()
    for name, value in state.items():
        if name in old:
            state[name] = _widened(old[name], value.shape)
        elif ".conv2." in name:
            value.zero_()
    large.load_state_dict(state)
    return large.eval()


def _widened(value: Tensor, shape: torch.Size) -> Tensor:
    for dim, (have, want) in enumerate(zip(value.shape, shape, strict=True)):
        if have == want:
            continue
        if want != 2 * have:
            raise ValueError(f"cannot widen {have} channels to {want}: only to twice as many")
        value = value.repeat_interleave(2, dim)
        if dim == 1:
            value = value / 2
    return value


def refine(
    vae: AutoencoderKL,
    pictures: np.ndarray,
    latents: Tensor,
    minutes: float,
    cache: Path,
    redrawn: Tensor | None = None,
    batch: int = 16,
) -> None:
    """Train the decoder further, in place, on fixed latents: a UNet trained on them stays valid.

    `redrawn` (m, 8, 16, 16) are the first m latents as a UNet draws them again from a little noise. Half of
    every batch comes from there, for what a UNet draws is what the decoder is going to be given.
    """
    way_back = nn.ModuleDict({"post": vae.post_quant_conv, "decoder": vae.decoder})
    way_back.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((22, step))
        torch.manual_seed(step)
        picks = rng.integers(len(pictures), size=batch)
        z = latents[torch.from_numpy(picks)].float()
        if redrawn is not None:
            picks[: batch // 2] = rng.integers(len(redrawn), size=batch // 2)
            z[: batch // 2] = redrawn[torch.from_numpy(picks[: batch // 2])].float()
        z = (z + 0.03 * torch.randn_like(z)).contiguous(memory_format=torch.channels_last)
        with timed_training.half():
            y = way_back["decoder"](way_back["post"](z))
        return redraw_loss(y.float(), to_tensor(np.stack([pictures[k] for k in picks])))

    average = timed_training.train(
        way_back,
        loss_of,
        minutes=minutes,
        lr=1e-3,
        checkpoint=cache / "decoder.pt",
        decay=0.995,
        hold=0.3,
        muon=True,
    )
    way_back.load_state_dict(average.state_dict())
    vae.eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 100) -> Tensor:
    """Latent means, float16 (n, 8, 16, 16)."""
    out = []
    for k in track(range(0, len(pictures), batch), "encoding"):
        x = to_tensor(pictures[k : k + batch])
        with timed_training.half():
            out.append(vae.encode(x).latent_dist.mean.half())
    return torch.cat(out)


@torch.no_grad()
def standardise(vae: AutoencoderKL, x: Tensor) -> None:
    """Fold a shift and scale per channel into the 1x1 convolutions: latents get mean 0 and variance 1."""
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(250)])
    n = z.shape[1]
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:n].div_(std[:, None, None, None])
    quant.bias[:n] = (quant.bias[:n] - mean) / std
    quant.weight[n:] = 0  # the posterior's log-variance: as good as none
    quant.bias[n:] = -12
    post.bias.add_(post.weight[:, :, 0, 0] @ mean)
    post.weight.mul_(std[None, :, None, None])


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio of a round trip, in dB."""
    values = []
    for k in range(0, len(pictures), 250):
        x = to_tensor(pictures[k : k + 250])
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        y = ((y + 1) * 127.5).round() / 127.5 - 1
        values.append(10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)).clamp_min(1e-10)))
    return torch.cat(values).mean().item()
