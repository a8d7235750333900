"""Attach two concepts to a diffusers pipeline of your own, draw, and detach them again."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import conceptkit as ck

PHOTOS = Path(__file__).parent / "photos"
NOUNS = {"my_dog": "dog", "moongate": "gate"}

with ck.Registry() as registry:
    known = {entry.name for entry in registry.list()}
for name, noun in NOUNS.items():
    if name not in known:
        print(f"Learning {name}, which takes a minute or two the first time.")
        ck.add(name, PHOTOS / name, noun=noun)

pipe = StableDiffusionPipeline.from_pretrained(ck.storybook.path())
out = Path("pictures")
out.mkdir(exist_ok=True)


def draw(prompt: str, file: str) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    picture = pipe(prompt, num_inference_steps=25, guidance_scale=3.5, generator=generator).images[0]
    picture.save(out / file)
    print(f"Wrote {out / file}: {prompt}")


with ck.attach(pipe, *NOUNS):
    draw("my_dog in front of a moongate", "attached.png")

# Outside the block, or after .detach(), the pipeline is the one that was loaded, bit for bit.
draw("a dog in front of a gate", "detached.png")
