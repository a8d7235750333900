"""Teach my_dog and moongate, unless they are known already, and draw them in one picture."""

from pathlib import Path

import torch

import conceptkit as ck
from conceptkit import images
from conceptkit.base import load

PHOTOS = Path(__file__).parent / "photos"
NAMES = ("my_dog", "moongate")
PROMPT = "my_dog in front of a moongate"

base = load("storybook")
registry = ck.Registry()
known = {entry.name for entry in registry.list()}
for name in NAMES:
    if name not in known:
        learned = ck.add(name, PHOTOS / name, base=base, registry=registry)
        print(f"Learned {learned.entry.ref}: {learned.seconds:.0f} s, {learned.bytes / 1000:.1f} kB.")

merge = ck.compose(*NAMES, base=base, registry=registry)
print(merge.report.text())

with ck.attach(base.pipe, merge):
    pictures = [
        base.pipe(
            PROMPT,
            num_inference_steps=25,
            guidance_scale=base.guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        for seed in range(4)
    ]
path = images.save_png(images.grid(pictures, 4), "pictures/compose_two.png", prompt=PROMPT, concepts=NAMES)
print(f"Wrote {path}")
