"""Draw an exported concept, or an exported merge, with diffusers alone; conceptkit is never imported.

Write an export, find the storybook, draw:

    conceptkit export my_dog moongate --out for_diffusers
    base=$(python -c "import conceptkit; print(conceptkit.storybook.path())")
    python examples/load_without_conceptkit.py for_diffusers "$base"
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

LORA = "pytorch_lora_weights.safetensors"

parser = argparse.ArgumentParser(description="Draw an export of conceptkit with diffusers alone.")
parser.add_argument("export", type=Path, help="the folder that `conceptkit export` wrote")
parser.add_argument("base", help="the folder or hub id of the base that the concepts were learned on")
parser.add_argument("--prompt", default="<my_dog> dog in front of a <moongate> gate")
parser.add_argument("--guidance", type=float, default=3.5, help="7.5 for Stable Diffusion")
chosen = parser.parse_args()

pipe = StableDiffusionPipeline.from_pretrained(chosen.base)
if (chosen.export / LORA).exists():
    pipe.load_lora_weights(str(chosen.export), weight_name=LORA)
for file in sorted(chosen.export.glob("*.safetensors")):
    if file.name != LORA:
        pipe.load_textual_inversion(str(chosen.export), weight_name=file.name, token=f"<{file.stem}>")

generator = torch.Generator("cpu").manual_seed(0)
options = {"num_inference_steps": 25, "guidance_scale": chosen.guidance, "generator": generator}
path = Path("pictures", "without_conceptkit.png")
path.parent.mkdir(exist_ok=True)
pipe(chosen.prompt, **options).images[0].save(path)
print(f"Wrote {path}: {chosen.prompt}")
