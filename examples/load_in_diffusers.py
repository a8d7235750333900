"""Put two concepts on a diffusers pipeline of your own, draw, and take them off again."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from conceptkit import storybook
from conceptkit.inference import attach
from conceptkit.registry import store
from conceptkit.workflows import add

PHOTOS = Path(__file__).parent / "photos"
NAMES = ("my_dog", "moongate")

known = {entry.name for entry in store.Registry().list()}
for name in NAMES:
    if name not in known:
        print(f"Learning {name}, which takes a minute or two the first time.")
        add.add(name, PHOTOS / name)

pipe = StableDiffusionPipeline.from_pretrained(storybook.path())
out = Path("pictures")
out.mkdir(exist_ok=True)


def draw(prompt: str, file: str) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    picture = pipe(prompt, num_inference_steps=25, guidance_scale=3.5, generator=generator).images[0]
    picture.save(out / file)
    print(f"Wrote {out / file}: {prompt}")


with attach(pipe, *NAMES):
    draw("my_dog in front of a moongate", "attached.png")

# Outside the block, or after .detach(), the pipeline is the one that was loaded, bit for bit.
draw("a dog in front of a gate", "detached.png")
