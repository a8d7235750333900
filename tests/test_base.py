"""A base knows itself: the same in every precision, another when its maps are, right at real sizes."""

import dataclasses
import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from conceptkit.base import attention, fingerprint, pipeline, text_features
from conceptkit.base.text_features import END
from conceptkit.errors import BadBase, BaseMismatch
from tests import tiny

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FIRST_SD15 = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
LAST_SDXL = "mid_block.attentions.0.transformer_blocks.9.attn2.to_v"


@pytest.mark.parametrize(
    ("config", "count", "outputs", "width", "name"),
    [(SD15, 32, 24_960, 768, FIRST_SD15), (SDXL, 140, 166_400, 2048, LAST_SDXL)],
    ids=["sd15", "sdxl"],
)
def test_real_sizes(config, count, outputs, width, name):
    with torch.device("meta"):
        maps = attention.kv_maps(UNet2DConditionModel(**config))
    assert len(maps) == count
    assert name in maps
    assert sum(linear.weight.shape[0] for linear in maps.values()) == outputs
    assert {linear.weight.shape[1] for linear in maps.values()} == {width}
    assert all(linear.bias is None for linear in maps.values())


@pytest.fixture(scope="module", params=[tiny.pico_sd, tiny.pico_sdxl], ids=["sd", "sdxl"])
def pico(request):
    return request.param


def test_precision_and_tokens_do_not_change_the_fingerprint(pico):
    full, half, coarse = (
        pipeline.of(pico().to(dtype)) for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    assert full.fingerprint == half.fingerprint
    assert full.fingerprint.distance(half.fingerprint) == 0
    assert 0 < full.fingerprint.distance(coarse.fingerprint) < pipeline.NOTICE_DISTANCE
    assert pipeline.check_fits(coarse.fingerprint, full, "my_dog") is None

    pipe = full.pipe
    pipe.tokenizer.add_tokens("<my_dog>")
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    assert fingerprint.fingerprint_of(pipe) == full.fingerprint


def test_a_tuner_does_not_hide_the_maps(pico):
    pipe = pico()
    before, names = fingerprint.fingerprint_of(pipe), list(attention.kv_maps(pipe.unet))
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k", "attn2.to_v"]))
    assert list(attention.kv_maps(pipe.unet)) == names
    assert fingerprint.fingerprint_of(pipe) == before


def test_distance_estimates_how_far_the_maps_moved():
    here, there = pipeline.of(tiny.pico_sd()), tiny.pico_sd()
    torch.manual_seed(1)
    for linear in attention.kv_maps(there.unet).values():
        weight = linear.weight.data
        linear.weight.data = weight + 0.05 * weight.norm() * torch.nn.functional.normalize(
            torch.randn_like(weight).flatten(), dim=0
        ).view_as(weight)
    distance = fingerprint.fingerprint_of(there).distance(here.fingerprint)
    assert distance == pytest.approx(0.05, rel=0.4)
    notice = pipeline.check_fits(fingerprint.fingerprint_of(there), here, "my_dog")
    assert notice is not None and "my_dog" in notice and "%" in notice


def test_another_architecture_is_an_error_that_names_both():
    here, there = pipeline.of(tiny.pico_sd(), "here"), pipeline.of(tiny.pico_sdxl())
    assert math.isinf(there.fingerprint.distance(here.fingerprint))
    with pytest.raises(BaseMismatch, match=r"my_dog was learned on there.* here"):
        pipeline.check_fits(there.fingerprint, here, "my_dog", "there")
    other = pipeline.of(tiny.pico_sd(seed=1))
    with pytest.raises(BaseMismatch, match="away from here"):
        pipeline.check_fits(other.fingerprint, here, "my_dog")


def test_features_are_what_the_pipeline_reads(pico):
    pipe = pico()
    prompts = ["a dog", "a red cat runs", ""]
    features = text_features.encode(pipe, prompts, batch=2)
    expected = pipe.encode_prompt(
        prompt="a dog", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert features.hidden.shape == (3, 77, pipeline.of(pipe).width)
    assert torch.allclose(features.hidden[0], expected[0][0], atol=1e-5)
    assert (features.roles == END).int().argmax(dim=1).tolist() == [
        len(pipe.tokenizer(prompt).input_ids) - 1 for prompt in prompts
    ]


def test_sizes_stack_in_module_order():
    here = pipeline.of(tiny.pico_sd())
    assert list(here.sizes) == list(attention.kv_maps(here.unet))
    assert sum(here.sizes.values()) == sum(m.out_features for m in attention.kv_maps(here.unet).values())
    assert (here.width, here.device.type, here.dtype) == (32, "cpu", torch.float32)
    assert dataclasses.is_dataclass(here)


def test_load_reads_a_folder_and_nothing_else(tmp_path, monkeypatch):
    pipe = tiny.pico_sd()
    folder = tiny.save(pipe, tmp_path / "a pico base")
    loaded = pipeline.load(str(folder))
    assert loaded.fingerprint == fingerprint.fingerprint_of(pipe)
    assert loaded.name == str(folder.resolve())
    monkeypatch.chdir(tmp_path)
    assert pipeline.load("a pico base").name == loaded.name

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{}")
    for name in ("empty", "broken", "nothing here", "nobody"):
        with pytest.raises(BadBase, match=name) as error:
            pipeline.load(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(BadBase, match="owner/nothing"):
        pipeline.load("owner/nothing")


def test_something_without_cross_attention_is_no_base():
    with pytest.raises(BadBase, match="no UNet"):
        pipeline.of(object())
    with pytest.raises(BadBase, match=r"a Linear, is of no family.*add-a-base"):
        attention.kv_maps(torch.nn.Linear(2, 2))
