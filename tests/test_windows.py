"""Side by side: what is drawn is MultiDiffusion over windows of the base's own size, and leaves no trace."""

import functools

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conceptkit.base import pipeline
from conceptkit.errors import BadPrompt, BadRegion
from conceptkit.inference import attach as attaching
from conceptkit.inference.generate import guided
from conceptkit.inference.multidiffusion import shares, starts
from tests.tiny import draw, perturbed, pico_concept, pico_sd, pico_sdxl, snapshot

attach = functools.partial(attaching.attach, confine=False)

BOTH = "my_dog in front of a moongate at night"
CLAUSES = ["<my_dog> dog at night", "a <moongate> gate at night"]


def two(pipe):
    return pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1, rank=3)


@pytest.fixture(scope="module")
def pipe():
    return pico_sd()


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 300))
def test_windows_cover_the_picture_and_their_weights_add_up(size, count, room):
    width = size if count == 1 else size + min(room, (count - 1) * size)
    begin = starts(width, size, count)
    weights = shares(begin, size, width)
    assert begin == sorted(begin) and begin[0] == 0 and begin[-1] + size == width
    assert torch.allclose(weights.sum(dim=0), torch.ones(width))
    for k, start in enumerate(begin):
        inside = torch.zeros(width, dtype=torch.bool)
        inside[start : start + size] = True
        assert (weights[k, inside] > 0).all() and (weights[k, ~inside] == 0).all()


@torch.no_grad()
def by_hand(pipe, clauses, begin, width, steps=2, guidance=2.0, pag=0.0):
    """The latents after MultiDiffusion, written without hooks: one prompt a window, predictions averaged by
    their distance to the window's edge."""
    size = pipe.unet.config.sample_size
    encoded = [
        pipe.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
        for text in clauses
    ]
    pipe.scheduler.set_timesteps(steps)
    latents = (
        torch.randn(1, 4, size, width, generator=torch.Generator().manual_seed(0))
        * pipe.scheduler.init_noise_sigma
    )
    for t in pipe.scheduler.timesteps:
        total, weight = torch.zeros_like(latents), torch.zeros(width)
        for start, found in zip(begin, encoded, strict=True):
            more = {}
            if len(found) > 2:
                pixels = size * pipe.vae_scale_factor
                ids = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * 2, dtype=torch.float32)
                more["added_cond_kwargs"] = {"text_embeds": torch.cat([found[3], found[2]]), "time_ids": ids}
            part = latents[..., start : start + size]
            against, towards = pipe.unet(
                torch.cat([part, part]), t, torch.cat([found[1], found[0]]), **more
            ).sample
            edge = torch.tensor([min(x + 0.5, size - x - 0.5) for x in range(size)])
            told = against + guidance * (towards - against)
            if pag:
                of_prompt = {
                    key: {name: value[1:] for name, value in given.items()} for key, given in more.items()
                }
                told = told + pag * (towards - perturbed(pipe.unet, "mid", part, t, found[0], **of_prompt))
            total[..., start : start + size] += edge * told
            weight[start : start + size] += edge
        latents = pipe.scheduler.step(total / weight, t, latents).prev_sample
    return latents


@pytest.mark.parametrize("build", [pico_sd, pytest.param(pico_sdxl, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["closed-form", "routed", pytest.param("sum", marks=pytest.mark.slow)])
def test_the_picture_is_that_of_its_windows(build, how):
    pipe = build()
    before = snapshot(pipe)
    pair = two(pipe)
    with attach(pipe, *pair, merge_method=how, side_by_side=True) as attachment:
        assert attachment.side_by_side
        assert list(attachment.clauses(BOTH).values()) == ["my_dog at night", "a moongate at night"]
        found = pipe(
            BOTH,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=2,
            guidance_scale=2.0,
            output_type="latent",
        ).images
        assert draw(pipe, BOTH).shape == (3, 16, 28)
    with attach(pipe, *pair, merge_method=how):
        wanted = by_hand(pipe, CLAUSES, [0, 6], 14)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-4)
    assert snapshot(pipe) == before


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
def test_each_window_is_drawn_with_perturbed_attention_guidance(build):
    pipe = build()
    before = snapshot(pipe)
    pair = two(pipe)
    options = {"num_inference_steps": 2, "output_type": "latent"}
    with (
        attach(pipe, *pair, side_by_side=True),
        guided(pipeline.of(pipe, "pico"), guidance=2.0, pag=1.5) as (guiding, scales),
    ):
        dice = torch.Generator().manual_seed(0)
        found = guiding(BOTH, generator=dice, **scales, **options).images
    with attach(pipe, *pair):
        plain = by_hand(pipe, CLAUSES, [0, 6], 14)
        wanted = by_hand(pipe, CLAUSES, [0, 6], 14, pag=1.5)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (wanted - plain).abs().max() > 1e-3
    assert snapshot(pipe) == before


def test_one_concept_has_the_whole_picture(pipe):
    pair = two(pipe)
    with attach(pipe, *pair):
        wanted = draw(pipe, "my_dog at night")
    with attach(pipe, pair[0]):
        by_itself = draw(pipe, BOTH)
    with attach(pipe, *pair, side_by_side=True):
        draw(pipe, BOTH)
        assert torch.equal(draw(pipe, "my_dog at night"), wanted)
    with attach(pipe, pair[0], side_by_side=True) as attachment:
        assert not attachment.side_by_side
        assert torch.equal(draw(pipe, BOTH), by_itself)


def test_a_style_is_all_over_the_picture(pipe):
    inky = pico_concept(pipe, "inky", None, seed=4)
    with attach(pipe, two(pipe)[0], inky, side_by_side=True) as attachment:
        assert not attachment.side_by_side
    with attach(pipe, *two(pipe), inky, side_by_side=True) as attachment:
        assert list(attachment.clauses(f"{BOTH} in the style of inky")) == ["my_dog", "moongate"]
        assert draw(pipe, f"{BOTH} in the style of inky").shape == (3, 16, 28)


@pytest.mark.parametrize("how", ["closed-form", "routed"])
def test_a_batch_is_as_large_as_it_likes(pipe, how):
    prompts = [f"my_dog and a moongate {'very ' * k}far away" for k in range(18)]
    with attach(pipe, *two(pipe), merge_method=how, side_by_side=True):
        many = pipe(prompts, num_inference_steps=1, guidance_scale=2.0, output_type="latent").images
    assert len(many) == 18 and many.shape[-1] == 14


def test_embeddings_of_a_prompt_are_drawn_like_the_prompt(pipe):
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"}

    def seed():
        return torch.Generator().manual_seed(0)

    with attach(pipe, *two(pipe), side_by_side=True):
        wanted = pipe(BOTH, generator=seed(), **options).images
        told, against = pipe.encode_prompt(BOTH, "cpu", 1, True)
        draw(pipe, "a moongate and my_dog")
        found = pipe(prompt_embeds=told, negative_prompt_embeds=against, generator=seed(), **options).images
        assert torch.equal(found, wanted)
        draw(pipe, BOTH)
        other = torch.randn(1, 77, 32)
        assert pipe.unet(torch.zeros(1, 4, 8, 8), 1, other).sample.shape == (1, 4, 8, 8)


def test_guidance_off_and_negative_prompts(pipe):
    """With the guidance off the negative prompt does not matter; with it on, it is one for all."""
    with attach(pipe, *two(pipe), side_by_side=True):
        plain = draw(pipe, BOTH, guidance_scale=1.0)
        assert torch.equal(draw(pipe, BOTH, guidance_scale=1.0, negative_prompt="a moongate"), plain)
        against = draw(pipe, BOTH, negative_prompt="my_dog and a moongate")
        assert against.shape == (3, 16, 28) and not torch.equal(against, draw(pipe, BOTH))


def test_a_second_prompt_in_another_order_is_told_to_the_same_windows():
    """Both orders of the second prompt say the same of each thing."""
    pipe = pico_sdxl()
    with attach(pipe, *two(pipe), side_by_side=True):
        same, other, plain = (
            draw(pipe, "a my_dog and a moongate", prompt_2=text)
            for text in ("a my_dog and a moongate", "a moongate and a my_dog", "the my_dog and the moongate")
        )
    assert torch.equal(same, other) and not torch.equal(same, plain)


def test_a_pipeline_that_draws_over_a_picture_has_no_windows(pipe):
    over = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    over.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (16, 16))
    with attach(over, *two(pipe)) as attachment:
        assert not attachment.side_by_side
        over(BOTH, image=picture, num_inference_steps=2)
    with pytest.raises(BadRegion, match="draws on a picture that it is given"):
        attach(over, *two(pipe), side_by_side=True)


def test_several_prompts_and_pictures_are_as_each_alone(pipe):
    prompts = [BOTH, "a moongate and my_dog"]
    with attach(pipe, *two(pipe), side_by_side=True):
        alone = [draw(pipe, text) for text in prompts]
        many = pipe(
            prompts,
            num_images_per_prompt=2,
            num_inference_steps=2,
            guidance_scale=2.0,
            generator=[torch.Generator().manual_seed(0) for _ in range(4)],
            output_type="np",
        ).images
    assert not torch.equal(alone[0], alone[1])
    for k, picture in enumerate(many):
        assert torch.allclose(torch.from_numpy(picture).permute(2, 0, 1), alone[k // 2], atol=1e-4)


def test_a_width_of_the_users_own_is_kept_and_a_narrow_one_refused(pipe):
    before = snapshot(pipe)
    with attach(pipe, *two(pipe), side_by_side=True):
        assert draw(pipe, BOTH, height=16, width=32).shape == (3, 16, 32)
        with pytest.raises(BadRegion, match="do not fit 16x32 pixels"):
            draw(pipe, BOTH, height=32, width=16)
        with pytest.raises(BadRegion, match="do not fit 16x16"):
            draw(pipe, BOTH, latents=torch.zeros(1, 4, 8, 8))
        with pytest.raises(BadRegion, match="do not fit 40x16 pixels.*up to 32"):
            draw(pipe, BOTH, height=16, width=40)
        with pytest.raises(BadPrompt, match="name 1 and 2 concepts"):
            pipe(["my_dog", BOTH], num_inference_steps=1)
    assert snapshot(pipe) == before


def test_nobody_sees_side_by_side_unasked(pipe):
    pair = two(pipe)
    with attach(pipe, *pair) as attachment:
        assert not attachment.side_by_side and attachment.clauses(BOTH) == {}
        assert draw(pipe, BOTH).shape == (3, 16, 16)
    assert not pipeline.of(pipe, pipeline.STORYBOOK).family.side_by_side
    assert not pipeline.of(pipe, "pico").family.side_by_side
    with pytest.raises(BadRegion, match="choose one of them"):
        attach(pipe, *pair, side_by_side=True, auto_regions=True)


def test_swapping_keeps_the_windows(pipe):
    cat = pico_concept(pipe, "my_cat", "cat", seed=5)
    with attach(pipe, *two(pipe), side_by_side=True) as attachment:
        attachment.swap("my_dog", cat)
        assert draw(pipe, "my_cat by a moongate").shape == (3, 16, 28)
