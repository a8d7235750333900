"""How far a few steps of each method's row move a base's maps, beside the published loops.

    python -m benchmarks.update_sizes [--steps 15] [--pixels 64] [--method custom ...]

At Stable Diffusion 1.5's full shape with random weights; pictures are small, for the shapes of the maps are
what counts, not that of the picture. It prints ||dW|| / ||W|| of the maps, and how far predictions for plain
captions move. The loops beside ours are written here, after diffusers' scripts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn

from benchmarks import sd15
from benchmarks.report import finish, use_own_cores
from conceptkit.base import pipeline as bases
from conceptkit.concepts.gates import rank_gates, reads_text
from conceptkit.data.photos import PhotoSet
from conceptkit.features import caption_statistics, captions
from conceptkit.learn.config import TrainConfig, config_for
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import train

BAR = 3.0
"""Times that our figure may be above or below the published loop's."""
STEPS, PIXELS = 15, 64
PLAIN = ("a dog on the beach", "a red car", "a house in the snow", "a birthday party")
LEVELS = (100, 500, 900)
BESIDE = {
    "custom": "lora",
    "dreambooth": "lora",
    "custom-diffusion": "kv",
    "textual-inversion": "token",
    "dreambooth-full": "unet",
}
"""Our methods, and the published loop that each is compared with."""
USUAL = ("custom", "dreambooth", "custom-diffusion", "textual-inversion")
"""All but dreambooth-full, for which 16 GB are needed."""
GROUPS: Mapping[str, Callable[[str], bool]] = {
    "attention": lambda name: ".attn" in name,
    "keys": lambda name: name.endswith("attn2.to_k"),
    "values": lambda name: name.endswith("attn2.to_v"),
    "text encoder": lambda name: name.startswith("text_encoder"),
}


@dataclass
class Moved:
    """What a loop has moved: ||dW|| / ||W|| by map, and plain captions' predictions by their size.

    word: the mean length of its vectors, by that of the base's tokens. seconds: of the run.
    """

    maps: dict[str, float] = field(default_factory=dict)
    word: float = 0.0
    plain: float = 0.0
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        """Median and largest of each group, and the rest."""
        found: dict[str, Any] = {}
        for group, belongs in GROUPS.items():
            sizes = [size for name, size in self.maps.items() if belongs(name)]
            found[group] = [round(float(np.median(sizes)), 5), round(max(sizes), 5)] if sizes else None
        more = {"word": self.word, "plain": self.plain, "seconds": self.seconds}
        return found | {name: round(value, 4) for name, value in more.items()}


class Bench:
    """A base, a photo of noise, and what it predicts for plain captions before anything is learned."""

    def __init__(self, steps: int, pixels: int, build: Callable[[int], Any]) -> None:
        self.steps, self.pixels = steps, pixels
        self.pipe = build(pixels)
        self.base = bases.of(self.pipe, "sd15")
        shape = (pixels, pixels, 3)
        self.photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
        make = torch.Generator().manual_seed(0)
        side = pixels // self.pipe.vae_scale_factor
        self.noisy = torch.randn(len(PLAIN), self.pipe.unet.config.in_channels, side, side, generator=make)
        self.before = self.predicted()

    @torch.no_grad()
    def predicted(self) -> Tensor:
        """Predictions for the plain captions at all levels."""
        read = self.base.architecture.encode(self.pipe, PLAIN)
        return torch.cat(
            [
                self.base.architecture.predict(self.pipe, self.noisy, torch.full((len(PLAIN),), t), read)
                for t in LEVELS
            ]
        )

    def plain(self) -> float:
        """How far they have moved, by their size."""
        return float((self.predicted() - self.before).norm() / self.before.norm())

    @contextmanager
    def added(self, changes: Mapping[str, Tensor]) -> Iterator[None]:
        """Changes (o, d) by name on the maps of the UNet, taken off again to the last bit."""
        modules = {name: self.pipe.unet.get_submodule(name) for name in changes}
        kept = {name: module.weight.data for name, module in modules.items()}
        for name, module in modules.items():
            module.weight.data = kept[name] + changes[name].to(kept[name])
        try:
            yield
        finally:
            for name, module in modules.items():
                module.weight.data = kept[name]


def ours(bench: Bench, method: str, changes: Mapping[str, str]) -> Moved:
    """A few steps of a method's row for this family, with changes."""
    recipe = row_in_short(method, bench.steps, changes)
    few = captions.captions("sd15")[: sd15.CAPTIONS]
    begun = time.perf_counter()
    with mock.patch.object(caption_statistics, "captions", lambda name: few):
        subject = Subject("my_dog", "dog", PhotoSet((bench.photo,), ("noise",), "noise"))
        concept = train(TrainRequest((subject,), recipe), Session(bench.base)).whole
    found = Moved(seconds=time.perf_counter() - begun)
    gated, acting = bool(rank_gates(concept)), {}
    for name, factors in concept.delta.items():
        part, _, inside = name.partition(".")
        owner = bench.pipe.text_encoder if part == "text_encoder" else bench.pipe.unet
        weight = owner.get_submodule(inside if part == "text_encoder" else name).weight
        change = factors.dense().float().reshape(weight.shape)
        found.maps[name] = float(change.norm() / weight.norm())
        if part != "text_encoder" and (reads_text(name) or not gated):
            acting[name] = change  # what is gated does not act on captions without the concept's name
    table = bench.pipe.text_encoder.get_input_embeddings().weight
    for (rows,) in concept.tokens.values():
        found.word = float(rows.norm(dim=1).mean() / table.norm(dim=1).mean())
    with bench.added(acting):
        found.plain = bench.plain()
    return found


def row_in_short(method: str, steps: int, changes: Mapping[str, str]) -> TrainConfig:
    """The row of Stable Diffusion, in a few steps of one picture, without pictures of the class."""
    row = config_for(method, family="stable-diffusion", changes=changes)
    return replace(
        row,
        max_train_steps=min(steps, row.max_train_steps),
        token_train_steps=min(steps, row.token_train_steps),
        train_batch_size=1,
        gradient_accumulation_steps=1,
        num_augmented_views=1,
        prior_loss_weight=0.0,
        auto_caption=False,
    )


def lora(bench: Bench) -> Moved:
    """train_dreambooth_lora.py: rank 4 on the maps of attention, AdamW at 1e-4."""
    unet = bench.pipe.unet
    maps = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=maps))
    learned = [p for p in unet.parameters() if p.requires_grad]
    found = Moved(seconds=loop(bench, learned, 1e-4), plain=bench.plain())
    for name, module in unet.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            change = module.get_delta_weight("default").detach()
            found.maps[name] = float(change.norm() / module.base_layer.weight.norm())
    unet.unload_lora()
    return found


def kv(bench: Bench) -> Moved:
    """train_custom_diffusion.py: keys and values of cross-attention, 1e-5 scaled by --scale_lr to 4e-5."""
    return matrices(bench, ("attn2.to_k", "attn2.to_v"), 4e-5)


def unet(bench: Bench) -> Moved:
    """train_dreambooth.py: all of the UNet, AdamW at 5e-6."""
    return matrices(bench, ("",), 5e-6)


def matrices(bench: Bench, endings: tuple[str, ...], rate: float) -> Moved:
    """A loop on weights themselves, which are put back afterwards."""
    weights = {
        name: module.weight
        for name, module in bench.pipe.unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(endings)
    }
    kept = {name: weight.data for name, weight in weights.items()}
    for weight in weights.values():
        weight.data = weight.data.clone()
    found = Moved(seconds=loop(bench, list(weights.values()), rate), plain=bench.plain())
    for name, weight in weights.items():
        found.maps[name] = float((weight.data - kept[name]).norm() / kept[name].norm())
        weight.data, weight.grad = kept[name], None
        weight.requires_grad_(False)
    return found


def token(bench: Bench) -> Moved:
    """textual_inversion.py: one row of the token table, AdamW at 5e-4 scaled by --scale_lr to 2e-3."""
    table = bench.pipe.text_encoder.get_input_embeddings().weight
    kept, row = table.data, bench.pipe.tokenizer.convert_tokens_to_ids("dog</w>")
    table.data = kept.clone()
    seconds = loop(bench, [table], 2e-3, prompt="a photo of a dog", only=row)
    found = Moved(word=float(table.data[row].norm() / kept.norm(dim=1).mean()), seconds=seconds)
    table.data, table.grad = kept, None
    table.requires_grad_(False)
    return found


def loop(
    bench: Bench,
    learned: Sequence[nn.Parameter],
    rate: float,
    prompt: str = "a photo of sks dog",
    only: int | None = None,
) -> float:
    """What diffusers' scripts have in common, one picture a step; gives the seconds it took.

    only: the one row of what is learned that may move, as the script puts the others back.
    """
    pipe, dice = bench.pipe, torch.Generator().manual_seed(0)
    begun = time.perf_counter()
    pixels = torch.from_numpy(np.array(bench.photo)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        spread = pipe.vae.encode(pixels).latent_dist
    for part in (pipe.unet, pipe.text_encoder):
        for parameter in part.parameters():
            parameter.requires_grad_(any(parameter is one for one in learned))
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=1e-2)
    signal = pipe.scheduler.alphas_cumprod
    for _ in range(bench.steps):
        clean = spread.sample(dice) * pipe.vae.config.scaling_factor
        noise, t = torch.randn(clean.shape, generator=dice), torch.randint(len(signal), (1,), generator=dice)
        level = signal[t].reshape(-1, 1, 1, 1)
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        with torch.set_grad_enabled(only is not None):
            read = pipe.encode_prompt(prompt, pipe.device, 1, False)[0]
        F.mse_loss(pipe.unet(noisy, t, read).sample, noise).backward()
        if only is None:
            nn.utils.clip_grad_norm_(learned, 1.0)
        before = learned[0].data.clone() if only is not None else None
        optimizer.step()
        optimizer.zero_grad()
        if before is not None:
            moved = learned[0].data[only].clone()
            learned[0].data = before.index_put((torch.tensor([only]),), moved[None])
    return time.perf_counter() - begun


LOOPS: Mapping[str, Callable[[Bench], Moved]] = {"lora": lora, "kv": kv, "token": token, "unet": unet}


def ratios(mine: Moved, theirs: Moved) -> dict[str, float]:
    """Ours by theirs: the median of each group that both move, or the word's where a word is all."""
    a, b = mine.figures(), theirs.figures()
    found = {group: a[group][0] / b[group][0] for group in GROUPS if a[group] and b[group] and b[group][0]}
    return found or ({"word": mine.word / theirs.word} if theirs.word else {})


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(list(BESIDE)), help="Only these.")
@click.option("--steps", default=STEPS, show_default=True)
@click.option("--pixels", default=PIXELS, show_default=True, help="On a side, a multiple of 64.")
@click.option("--set", "given", multiple=True, metavar="FIELD=VALUE", help="Of our rows.")
@click.option("--tiny", "small", is_flag=True, help="On a miniature, to try the program.")
def main(methods: tuple[str, ...], steps: int, pixels: int, given: tuple[str, ...], small: bool) -> None:
    use_own_cores()
    bench = Bench(steps, 16 if small else pixels, _tiny if small else lambda side: sd15.pipeline(pixels=side))
    chosen, changes = methods or USUAL, dict(one.split("=", 1) for one in given)
    beside: dict[str, Moved] = {}
    rows: dict[str, Any] = {}
    for name in dict.fromkeys(BESIDE[method] for method in chosen):
        beside[name] = LOOPS[name](bench)
        rows[f"published: {name}"] = beside[name].figures()
        print(f"published: {name}", rows[f"published: {name}"], flush=True)
    compared: dict[str, dict[str, float]] = {}
    for method in chosen:
        mine = ours(bench, method, changes)
        rows[method] = mine.figures()
        compared[method] = ratios(mine, beside[BESIDE[method]])
        print(method, rows[method], "times published:", compared[method], flush=True)
    apart = {
        method: max(max(r, 1 / max(r, 1e-9)) for r in found.values())
        for method, found in compared.items()
        if found
    }
    worst = max(apart.values(), default=None)
    full = not small and not given and set(chosen) >= set(USUAL) and steps >= STEPS
    finish(
        "update_sizes",
        worst,
        "times the published loop's median ||dW|| / ||W||, or its inverse, the farthest of all groups",
        BAR,
        worst is not None and worst <= BAR,
        [0],
        trial=""
        if full
        else ", ".join([*chosen, f"{steps} steps", *(["a miniature"] if small else []), *given]),
        rows=rows,
        times_published=compared,
        steps=steps,
        pixels=bench.pixels,
    )


def _tiny(pixels: int) -> Any:
    from tests.tiny import pico_sd

    return pico_sd()


if __name__ == "__main__":
    main()
