"""What a pipeline is given beside latents: concepts get windows and regions of its size, or a sentence."""

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)
from PIL import Image

from conceptkit.errors import BadRegion
from conceptkit.inference.attach import attach
from conceptkit.inference.multidiffusion import can_have_windows
from tests.test_vico import seeing
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl

BOTH = "my_dog in front of a moongate"
PICTURE = Image.new("RGB", (16, 16), "green")
KINDS = {
    StableDiffusionImg2ImgPipeline: {"image": PICTURE, "strength": 0.9},
    StableDiffusionInpaintPipeline: {
        "image": PICTURE,
        "mask_image": Image.new("L", (16, 16), 255),
        "strength": 0.99,
    },
    StableDiffusionControlNetPipeline: {"image": PICTURE},
    StableDiffusionAdapterPipeline: {"image": PICTURE},
}


def build(kind):
    pipe = pico_sd()
    more = {}
    if kind is StableDiffusionControlNetPipeline:
        net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
        torch.nn.init.normal_(net.controlnet_mid_block.weight)
        more["controlnet"] = net
    if kind is StableDiffusionAdapterPipeline:
        more["adapter"] = T2IAdapter(
            in_channels=3,
            channels=[16, 32],
            num_res_blocks=1,
            downscale_factor=2,
            adapter_type="full_adapter",
        )
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    made = kind(**parts, **more, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def two(pipe):
    return pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1, rank=3)


SLOW_KINDS = (StableDiffusionAdapterPipeline, StableDiffusionInpaintPipeline)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW_KINDS else k for k in KINDS]
)
def test_a_pipeline_that_is_given_pictures_draws_one_frame_with_regions(kind):
    pipe, given = build(kind), {"num_inference_steps": 6} | KINDS[kind]
    assert not can_have_windows(pipe)
    with attach(pipe, *two(pipe)) as attachment:
        assert not attachment.side_by_side
        plain = draw(pipe, BOTH, **given)
    with attach(pipe, *two(pipe), regions=["my_dog=left", "moongate=right"]):
        parted = draw(pipe, BOTH, **given)
        assert parted.shape == plain.shape == (3, 16, 16) and not torch.equal(parted, plain)
    with attach(pipe, *two(pipe), auto_regions=True):
        draw(pipe, BOTH, **given)
    with pytest.raises(BadRegion, match=f"A {kind.__name__} draws on a picture that it is given, or after"):
        attach(pipe, *two(pipe), side_by_side=True)


def test_text_to_image_has_windows():
    assert can_have_windows(pico_sd()) and can_have_windows(pico_sdxl())


def test_the_residuals_of_another_network_have_no_windows():
    pipe = pico_sd()
    with attach(pipe, *two(pipe), side_by_side=True):
        told = pipe.encode_prompt(BOTH, "cpu", 1, False)[0]
        residual = torch.zeros(1, 32, 4, 7)
        with pytest.raises(BadRegion, match="mid_block_additional_residual is about one frame"):
            pipe.unet(torch.zeros(1, 4, 8, 14), 1, told, mid_block_additional_residual=residual)
        masks = {"ip_adapter_masks": [torch.ones(1, 1, 16, 16)]}
        with pytest.raises(BadRegion, match="ip_adapter_masks is about one frame.*side_by_side=False"):
            draw(pipe, BOTH, cross_attention_kwargs=masks)


@pytest.fixture
def with_image_prompt():
    """A pipeline with an IP-Adapter of random values that reads image embeddings of 12 numbers."""
    pipe = pico_sd()
    cross = [m for name, m in pipe.unet.named_modules() if name.endswith("attn2")]
    dice = torch.Generator().manual_seed(3)
    maps = {}
    # In the order of diffusers: down, up, then the middle.
    names = [name for name in pipe.unet.attn_processors if "attn2" in name]
    modules = dict(pipe.unet.named_modules())
    for i, name in enumerate(names):
        o, d = modules[name.removesuffix(".processor")].to_k.weight.shape
        for part in ("k", "v"):
            maps[f"{2 * i + 1}.to_{part}_ip.weight"] = torch.randn(o, d, generator=dice)
    assert len(names) == len(cross)
    projection = {
        "proj.weight": torch.randn(4 * 32, 12, generator=dice),
        "proj.bias": torch.zeros(4 * 32),
        "norm.weight": torch.ones(32),
        "norm.bias": torch.zeros(32),
    }
    pipe.unet._load_ip_adapter_weights({"image_proj": projection, "ip_adapter": maps})
    return pipe, {"ip_adapter_image_embeds": [torch.randn(2, 1, 12, generator=dice)]}


@pytest.mark.parametrize(
    "order",
    [
        {"regions": ["my_dog=left"]},
        *(pytest.param(order, marks=pytest.mark.slow) for order in ({}, {"separate": True})),
        {"side_by_side": True},
    ],
)
def test_an_image_prompt_goes_with_every_way(with_image_prompt, order):
    pipe, given = with_image_prompt
    other = {"ip_adapter_image_embeds": [-given["ip_adapter_image_embeds"][0]]}
    with attach(pipe, *two(pipe), **order) as attachment:
        drawn = draw(pipe, BOTH, num_inference_steps=6, **given)
        assert drawn.shape == ((3, 16, 28) if attachment.side_by_side else (3, 16, 16))
        assert not torch.equal(draw(pipe, BOTH, num_inference_steps=6, **other), drawn)


def test_an_image_prompt_goes_with_a_reference_photo(with_image_prompt):
    pipe, given = with_image_prompt
    with attach(pipe, seeing(pipe)):
        shown = draw(pipe, "my_dog in the snow", **given)
        blind = draw(pipe, "my_dog in the snow", cross_attention_kwargs={"scale": 0.0}, **given)
        half = draw(pipe, "my_dog in the snow", cross_attention_kwargs={"scale": 0.5}, **given)
    assert not torch.equal(shown, blind) and not torch.allclose(half, shown, atol=1e-5)


def test_a_reference_photo_is_as_strong_as_the_scale():
    pipe = pico_sd()
    concept = seeing(pipe)
    with attach(pipe, concept):
        half = draw(pipe, "my_dog in the snow", cross_attention_kwargs={"scale": 0.5})
    object.__setattr__(concept, "reference", concept.reference.scaled(0.5))
    with attach(pipe, concept):
        assert torch.allclose(draw(pipe, "my_dog in the snow"), half, atol=1e-5)


def test_an_inpainting_pipeline_with_the_base_of_another():
    pipe = build(StableDiffusionInpaintPipeline)
    plain = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    assert can_have_windows(plain)
