"""Concepts in the files of other programs, read by loaders that never heard of conceptkit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from conceptkit.base import pipeline
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.errors import ConceptError
from conceptkit.formats.dialects import DIALECTS, export, left_out
from conceptkit.formats.lora_modules import fused, kohya_modules, split
from conceptkit.formats.module_names import NAMES, sdxl
from conceptkit.inference.attach import attach
from tests import warm_process
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, save

PROMPT = "a photo of my_dog in the snow"
KOHYA_LIKE = """
import re, sys
import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

base, lora, embedding, token, prompt, picture = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(base)
pipe.set_progress_bar_config(disable=True)
two = hasattr(pipe, "text_encoder_2")

# sd-scripts and the web UIs: every module by its name with underscores; SDXL by the blocks of its checkpoint.
def sgm(name):
    down, up = r"^down_blocks\\.(\\d+)\\.attentions\\.(\\d+)", r"^up_blocks\\.(\\d+)\\.attentions\\.(\\d+)"
    name = re.sub(down, lambda m: f"input_blocks.{3*int(m[1])+int(m[2])+1}.1", name)
    name = re.sub(up, lambda m: f"output_blocks.{3*int(m[1])+int(m[2])}.1", name)
    return name.replace("mid_block.attentions.0", "middle_block.1")

modules = {}
for name, module in pipe.unet.named_modules():
    if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
        modules["lora_unet_" + (sgm(name) if two else name).replace(".", "_")] = module
for prefix, encoder in [("lora_te1" if two else "lora_te", pipe.text_encoder)] + (
        [("lora_te2", pipe.text_encoder_2)] if two else []):
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.Linear) and "encoder.layers" in name:
            modules[f"{prefix}_text_model_{name.removeprefix('text_model.')}".replace(".", "_")] = module
file, used = load_file(lora), set()
for key in {key.split(".")[0] for key in file}:
    ends = ("lora_up.weight", "lora_down.weight", "alpha")
    up, down, alpha = (file[f"{key}.{end}"].float() for end in ends)
    assert up.shape[1] == down.shape[0]
    weight = modules[key].weight
    weight.data += (alpha / down.shape[0]) * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    used |= {f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha"}
assert used == set(file), set(file) - used
rows = load_file(embedding)
if two:
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        parts = {name: getattr(pipe, name + end) for name in ("text_encoder", "tokenizer")}
        pipe.load_textual_inversion(rows[key], token, **parts)
else:
    pipe.load_textual_inversion(rows["emb_params"], token)
image = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="np", num_inference_steps=2,
             guidance_scale=2.0).images[0]
np.save(picture, image)
assert not [name for name in sys.modules if name.startswith("conceptkit")]
"""


def elsewhere(tmp_path, *arguments):
    warm_process.run(KOHYA_LIKE, *arguments, folder=tmp_path)


@pytest.mark.parametrize(
    ("build", "options", "dialect", "folder"),
    [
        (pico_sd, {"text_rank": 3}, "a1111", "models/Lora"),
        (pico_sdxl, {"rank": 3, "text_rank": 1}, "comfyui", "models/loras"),
    ],
    ids=["sd", "sdxl"],
)
def test_a_kohya_loader_draws_the_same_picture(build, options, dialect, folder, tmp_path):
    pipe = build()
    concept = pico_concept(pipe, **options)
    plain = draw(pipe, PROMPT)
    with attach(pipe, concept):
        expected = draw(pipe, PROMPT)
    save(pipe, tmp_path / "base")
    paths = export(concept, tmp_path / "app", dialect=dialect)
    lora, embedding, note = (path.relative_to(tmp_path / "app").as_posix() for path in paths)
    assert lora == f"{folder}/my_dog.safetensors" and note == "my_dog.txt"
    typed = "a photo of <my_dog> dog in the snow"
    elsewhere(tmp_path, tmp_path / "base", paths[0], paths[1], "<my_dog>", typed, tmp_path / "picture.npy")
    picture = torch.from_numpy(np.load(tmp_path / "picture.npy")).permute(2, 0, 1)
    assert (picture - expected).norm() <= 1e-4 * expected.norm()
    assert (picture - plain).abs().max() > 1e-3
    assert embedding.endswith("my_dog.safetensors")


def real_names(build, config):
    with torch.device("meta"):
        model = build(**config)
    return {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}


SD3 = dict(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=8,
    joint_attention_dim=16,
    caption_projection_dim=16,
    pooled_projection_dim=8,
    sample_size=8,
    dual_attention_layers=(0,),
)
FLUX = dict(
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=16,
    pooled_projection_dim=8,
    guidance_embeds=True,
    axes_dims_rope=(4, 6, 6),
)
SDXL_SHAPE = dict(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16, 32),
    norm_num_groups=4,
    transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True,
    cross_attention_dim=16,
    attention_head_dim=8,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=56,
)


@pytest.mark.parametrize(
    ("family", "build", "config", "few"),
    [
        ("sd3", SD3Transformer2DModel, SD3, {"norm_out.linear"}),
        ("flux", FluxTransformer2DModel, FLUX, {"norm_out.linear"}),
        ("sdxl", UNet2DConditionModel, SDXL_SHAPE, set()),
    ],
)
def test_every_map_of_a_model_has_a_place_of_its_own(family, build, config, few):
    maps = real_names(build, config)
    places = {name: NAMES[family].place(name) for name in maps}
    assert {name for name, place in places.items() if place is None} == few
    taken = [(place.key, place.part) for place in places.values() if place]
    assert len(set(taken)) == len(taken)


def test_sdxl_names_are_those_of_its_checkpoint():
    """Pairs as diffusers' own conversion of the original checkpoint has them."""
    known = {
        "down_blocks.1.attentions.0.proj_in": "input_blocks_4_1_proj_in",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k": (
            "input_blocks_8_1_transformer_blocks_9_attn2_to_k"
        ),
        "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "mid_block.attentions.0.proj_out": "middle_block_1_proj_out",
        "mid_block.resnets.1.conv2": "middle_block_2_out_layers_3",
        "up_blocks.0.attentions.2.proj_in": "output_blocks_2_1_proj_in",
        "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
        "up_blocks.1.attentions.0.proj_in": "output_blocks_3_1_proj_in",
        "up_blocks.2.resnets.2.conv_shortcut": "output_blocks_8_0_skip_connection",
        "time_embedding.linear_1": "time_embed_0",
    }
    assert {name: sdxl(name).key.removeprefix("lora_unet_") for name in known} == known


@pytest.mark.parametrize(
    ("family", "build", "config"),
    [("sd3", SD3Transformer2DModel, SD3), ("flux", FluxTransformer2DModel, FLUX)],
)
def test_fused_modules_are_the_maps_one_after_another(family, build, config):
    maps = {
        n: m for n, m in real_names(build, config).items() if NAMES[family].place(n) and "pos_embed" not in n
    }
    torch.manual_seed(0)
    delta = Delta(
        {
            name: Factors(torch.randn(m.weight.shape[0], 2), torch.randn(2, m.weight.shape[1]))
            for name, m in maps.items()
        }
    )
    concept = replace(pico_concept(pico_sd()), delta=delta, recipe={"family": family})
    modules = kohya_modules(concept, NAMES[family])
    assert len({up.shape[1] for up, _ in modules.values()}) == 1
    for name, factors in delta.items():
        place = NAMES[family].place(name)
        up, down = modules[place.key]
        before = sum(
            delta[other].shape[0]
            for other in delta
            if (p := NAMES[family].place(other)).key == place.key and p.part < place.part
        )
        rows = (up @ down)[before : before + factors.shape[0]]
        assert torch.allclose(rows, factors.dense(), atol=1e-5)


def test_what_is_fused_is_split_again_without_ranks_of_others():
    torch.manual_seed(0)
    parts = {i: Factors(torch.randn(6, 2), torch.randn(2, 5)) for i in (0, 2)}
    q, k, v = split(fused(parts, 3), [6, 6, 6])
    assert k is None and q.equal(parts[0]) and v.equal(parts[2])


def test_the_header_tells_other_programs_what_it_is(tmp_path):
    concept = replace(
        pico_concept(pico_sd()),
        provenance={"parents": ["rex@1", "gate@2"], "photos": ["/home/me/rex.jpg"]},
        base_name="/home/me/base",
    )
    lora, _, note = export(concept, tmp_path, dialect="comfyui")
    with safe_open(lora, "pt") as file:
        told = file.metadata()
        ranks = {file.get_slice(key).get_shape()[0] for key in file.keys() if "lora_down" in key}  # noqa: SIM118
        alphas = {float(file.get_tensor(key)) for key in file.keys() if key.endswith(".alpha")}  # noqa: SIM118
    assert ranks == alphas == {2} and told["ss_network_dim"] == "2" and told["ss_network_alpha"] == "2.0"
    assert told["ss_base_model_version"] == "sd_v1"
    assert told["modelspec.trigger_phrase"] == "embedding:my_dog dog"
    assert json.loads(told["ss_tag_frequency"]) == {"my_dog": {"embedding:my_dog dog": 1}}
    assert told["modelspec.merged_from"] == "rex@1, gate@2"
    assert len(told["sshs_model_hash"]) == 64
    assert "/home/me" not in json.dumps(told) and "rex.jpg" not in json.dumps(told)
    lines = note.read_text().splitlines()
    assert len(lines) == 3 and "models/loras" in lines[0] and "embedding:my_dog dog" in lines[1]


@pytest.mark.parametrize("dialect", ["comfyui", "a1111", "forge", "invokeai"])
def test_what_fits_no_model_of_a_program_says_so(dialect, tmp_path):
    """Storybook's maps have widths of their own: a file for it names no family of models."""
    concept = replace(pico_concept(pico_sd()), base_name="storybook")
    (sentence,) = left_out(concept, dialect)
    assert sentence.startswith("my_dog fits storybook alone, and no model of")
    lora, *_, note = export(concept, tmp_path, dialect=dialect)
    with safe_open(lora, "pt") as file:
        told = file.metadata()
    assert told["ss_base_model_version"] == "storybook" and told["modelspec.architecture"] == "storybook/lora"
    assert "For: storybook alone; it fits no model of" in note.read_text()


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name not in ("peft", "textual-inversion")])
def test_nothing_of_this_machine_leaves(dialect, tmp_path):
    pipe = pico_sd()
    concept = replace(pico_concept(pipe), provenance={"photos": ["rex.jpg"]}, base_name="/home/me/base")
    paths = export(concept, tmp_path, dialect=dialect, base=pipeline.of(pipe))
    assert len(paths) == 3 or dialect == "pipeline"
    for path in paths:
        assert b"/home/me" not in path.read_bytes() and b"rex.jpg" not in path.read_bytes()


def test_custom_diffusion_files_hold_the_base_plus_the_delta(tmp_path):
    pipe = pico_sd()
    concept = pico_concept(pipe, text_rank=1)
    weights, embedding, _ = export(concept, tmp_path, dialect="custom-diffusion", base=pipeline.of(pipe))
    held = load_file(weights)
    name = next(name for name in concept.delta if name.endswith("attn2.to_v"))
    key = name.replace(".to_v", ".processor.to_v_custom_diffusion.weight")
    own = pipe.unet.get_submodule(name).weight.detach()
    assert torch.allclose(held[key], own + concept.delta[name].dense(), atol=1e-6)
    assert len(held) == 14 and load_file(embedding)["<my_dog>"].shape == (32,)
    (sentence,) = left_out(concept, "custom-diffusion")
    assert "leave out 8 of the 22 maps" in sentence and "export my_dog for diffusers" in sentence
    with pytest.raises(ConceptError, match="give export the base"):
        export(concept, tmp_path / "none", dialect="custom-diffusion")


def test_a_routed_merge_is_refused_with_what_can_leave(tmp_path):
    concept = replace(
        pico_concept(pico_sd()),
        recipe={"method": "routed", "ranks": [2], "routes": {"my_dog": 0}, "shared": "sum"},
    )
    with pytest.raises(ConceptError, match="made without --merge-method routed"):
        export(concept, tmp_path, dialect="comfyui")
    assert not any(tmp_path.iterdir())
