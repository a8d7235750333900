"""Outlines of things against where they are known to be: rendered scenes, noised, that the base looks at.

Rendered scenes say where each thing is. They are given to the base at the noise levels of a drawing, which
says where it looks for the nouns, and the outlines that follow from this are compared with the truth: by the
intersection over the union, where 1 is the truth with the reach that an outline has, and 0 nothing. Beside it
attention alone, parted by Otsu's threshold.
"""

from __future__ import annotations

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from scipy import ndimage
from torch import Tensor

from benchmarks.report import finish, shortfall, use_own_cores
from conceptkit.base import pipeline as bases
from conceptkit.base.autoencoder import latents_of, pixels_of
from conceptkit.base.noise_schedule import add_noise
from conceptkit.base.text_features import positions, spell, token_ids
from conceptkit.inference.detail import PERHAPS
from conceptkit.inference.generate import STEPS
from conceptkit.inference.layout_attention import CrossAttention, Watch, watch_hooks
from conceptkit.inference.layout_masks import Cells, find_parts, otsu, soft_masks
from conceptkit.inference.outlines import REACH, outlines
from conceptkit.storybook.world import scene

SCENES = 70
OTHERS = 17
"""Seed of scenes on which nothing was chosen."""
SAID = {"beach": " on the beach", "forest": " in a forest", "snow": " in the snow", "city": " in the city"}
PLACES = (*SAID, None)
SHOWN = 0.06
"""Difference in colour from which on a pixel shows a thing."""
EVERY = 3
"""Steps of a drawing from one noise level to the next."""
BAR = 0.6


def scenes(count: int) -> list[scene.Scene]:
    """Of two things side by side and of one thing, in turn, in all places."""
    rng, nouns = np.random.default_rng(OTHERS), list(scene.CLASSES)
    found = []
    for k in range(count):
        several = 2 - k % 2
        figures = tuple(
            scene.draw_figure(scene.draw_subject(rng, nouns[i]), rng, plain=True)
            for i in rng.choice(len(nouns), several, replace=False)
        )
        place = PLACES[k // 2 % len(PLACES)]
        near = None if several == 2 else "near"
        beside = "next to" if several == 2 else None
        found.append(scene.Scene(figures, place, framing=near, relation=beside, seed=OTHERS + k))
    return found


def truth(one: scene.Scene) -> Cells:
    """Where each of N figures is, (N, H, W)."""
    whole = np.asarray(scene.render(one), dtype=float) / 255
    without = [np.asarray(scene.render(one, without={k}), dtype=float) / 255 for k in range(len(one.figures))]
    return np.stack([np.abs(whole - other).max(axis=2) > SHOWN for other in without])


@torch.no_grad()
def watched(base: bases.Base, one: scene.Scene, seed: int) -> tuple[Tensor, Watch]:
    """The scene through the autoencoder (3, H, W), and what the base looks at for its nouns."""
    pipe, denoiser = base.pipe, base.pipe.unet
    nouns = [figure.subject.noun for figure in one.figures]
    prompt = "photo of a " + " next to a ".join(nouns) + SAID.get(one.place or "", "")
    ids = token_ids(pipe, [prompt])
    own = torch.stack([positions(ids, spell(pipe, noun))[0] for noun in nouns], dim=1)[None].float()
    features = pipe.encode_prompt(
        prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    pixels = torch.from_numpy(np.asarray(scene.render(one)).copy()).permute(2, 0, 1)[None].float() / 255
    latents = latents_of(pipe, pixels)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    watch, row = Watch(own, CrossAttention(), every=1), torch.tensor([0])
    undo = watch_hooks(
        denoiser,
        CrossAttention(),
        lambda module, args, kwargs: watch.look(module, args, kwargs, row),
        lambda *_: None,
        lambda module, args, kwargs: watch.look_between(module, args, kwargs, row),
    )
    try:
        pipe.scheduler.set_timesteps(STEPS)
        for t in pipe.scheduler.timesteps[::EVERY]:
            watch.begin((latents.shape[2], latents.shape[3]))
            noised = add_noise(latents, noise, pipe.scheduler.alphas_cumprod[t].view(1))
            denoiser(noised, t, encoder_hidden_states=features)
    finally:
        undo()
    return pixels_of(pipe, latents)[0], watch


def score(base: bases.Base, one: scene.Scene, seed: int) -> dict[str, float]:
    """Mean intersection over union over the things of a scene: of outlines, of attention, of the truth with
    its reach."""
    there = truth(one)
    picture, watch = watched(base, one, seed)
    maps = watch.maps(watch.calls)[0]
    parts = find_parts(maps.double().numpy(), [figure.subject.noun for figure in one.figures])
    seen = watch.outlining(watch.calls)[0]
    alone = len(there) == 1
    owners = torch.ones(1, 1, 1) if alone else soft_masks(parts.masks, None)
    level = F.interpolate(maps[None], picture.shape[1:], mode="bilinear")[0].numpy()
    reach = REACH * max(picture.shape[1:])
    found = {
        "outlines": outlines(picture, seen, owners, [PERHAPS])[0],
        "attention": np.stack([each >= otsu(each) for each in level]),
        "truth with its reach": np.stack([ndimage.distance_transform_edt(~mask) <= reach for mask in there]),
    }
    return {
        what: float(np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(masks, there, strict=True)]))
        for what, masks in found.items()
    }


@click.command()
@click.option("--scenes", "count", default=SCENES, show_default=True, help="Half of two things.")
def main(count: int) -> None:
    use_own_cores()
    base = bases.load()
    lines = {"two": [], "one": []}
    for k, each in enumerate(track(scenes(count), "scenes")):
        lines["two" if len(each.figures) == 2 else "one"].append(score(base, each, OTHERS + k))
    found = {
        kind: {what: float(np.mean([line[what] for line in scored])) for what in scored[0]}
        for kind, scored in lines.items()
        if scored
    }
    for kind, means in found.items():
        print(kind, ", ".join(f"{what} {value:.2f}" for what, value in means.items()))
    value = min(means["outlines"] for means in found.values())
    finish(
        "outlines",
        value,
        "intersection over union of outlines with the truth, the smaller of scenes of one and of two things",
        BAR,
        value >= BAR,
        f"{OTHERS}..{OTHERS + count - 1}",
        trial=shortfall(scenes=(count, SCENES)),
        found=found,
    )


if __name__ == "__main__":
    main()
