"""Teach my_dog and moongate, unless they are known already, and draw them in one picture."""

from pathlib import Path

import torch

from conceptkit.base.pipeline import load
from conceptkit.features import closed_form
from conceptkit.inference import attach
from conceptkit.pictures import contact_sheet, png_metadata
from conceptkit.registry import store
from conceptkit.workflows import add

PHOTOS = Path(__file__).parent / "photos"
NAMES = ("my_dog", "moongate")
PROMPT = "my_dog in front of a moongate"

base = load("storybook")
registry = store.Registry()
known = {entry.name for entry in registry.list()}
for name in NAMES:
    if name not in known:
        learned = add.add(name, PHOTOS / name, base=base, registry=registry)
        print(f"Learned {learned.entry.ref}: {learned.seconds:.0f} s, {learned.bytes / 1000:.1f} kB.")

merge = closed_form(*NAMES, base=base, registry=registry)
print(merge.report.text())

with attach(base.pipe, merge):
    pictures = [
        base.pipe(
            PROMPT,
            num_inference_steps=25,
            guidance_scale=base.family.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        for seed in range(4)
    ]
path = png_metadata.save_png(
    contact_sheet.grid(pictures, 4), "pictures/compose_two.png", prompt=PROMPT, concepts=NAMES
)
print(f"Wrote {path}")
