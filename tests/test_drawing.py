"""Guidance while drawing: it is the papers' formula, keeps what is attached, and leaves no trace."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoPipelineForText2Image

from conceptkit.base import pipeline as bases
from conceptkit.base.families import FAMILIES
from conceptkit.errors import BadBase, ConceptError
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import draw, guided
from tests.test_vico import seeing
from tests.tiny import perturbed, pico_concept, pico_sd, pico_sdxl, snapshot

PROMPT = "my_dog in front of a moongate"
STEPS, GUIDANCE, PAG = 2, 2.0, 1.5


def picture(base, pag, **options):
    options |= {"num_inference_steps": STEPS, "output_type": "latent"}
    with guided(base, GUIDANCE, pag) as (pipe, scales):
        return pipe(PROMPT, generator=torch.Generator().manual_seed(0), **scales, **options).images


@torch.no_grad()
def by_hand(base):
    """The latents of `picture`, by the formula of 2403.17377 without its pipeline in diffusers."""
    pipe = base.pipe
    found = pipe.encode_prompt(
        PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    pipe.scheduler.set_timesteps(STEPS)
    size = pipe.unet.config.sample_size
    latents = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    latents = latents * pipe.scheduler.init_noise_sigma
    more = [{}, {}]
    if len(found) > 2:
        pixels = size * pipe.vae_scale_factor
        ids = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], dtype=torch.float32)
        more = [{"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}} for pooled in found[2:]]
    for t in pipe.scheduler.timesteps:
        towards, against = (
            pipe.unet(latents, t, told, **given).sample for told, given in zip(found[:2], more, strict=True)
        )
        worse = perturbed(pipe.unet, base.family.pag_layers[0], latents, t, found[0], **more[0])
        told = against + GUIDANCE * (towards - against) + PAG * (towards - worse)
        latents = pipe.scheduler.step(told, t, latents).prev_sample
    return latents


@pytest.mark.parametrize("build", [pico_sd, pytest.param(pico_sdxl, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kept", ["nobody", "two", "regions", "routed"])
def test_perturbed_attention_guidance_is_the_papers_formula(build, kept):
    pipe = build()
    base = bases.of(pipe, "pico")
    before = snapshot(pipe)
    pair = pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1)
    options = {"regions": {"regions": ["my_dog=left"]}, "routed": {"merge_method": "routed"}}.get(kept, {})
    attachment = None if kept == "nobody" else attach(pipe, *pair, confine=False, **options)
    expected, plain = by_hand(base), picture(base, 0.0)
    assert torch.allclose(picture(base, PAG), expected, atol=2e-5)
    assert (plain - expected).abs().max() > 1e-3
    if attachment:
        attachment.detach()
        assert not torch.allclose(picture(base, PAG), expected, atol=1e-3)
    assert snapshot(pipe) == before


def test_without_it_the_pipeline_draws_what_it_always_drew():
    pipe = pico_sd()
    dice = torch.Generator().manual_seed(0)
    same = pipe(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=dice, output_type="latent"
    )
    assert torch.equal(picture(bases.of(pipe, "pico"), 0.0), same.images)


def test_somebody_elses_pipeline_of_that_guidance_takes_concepts_too():
    ours = pico_sd()
    theirs = AutoPipelineForText2Image.from_pipe(pico_sd(), enable_pag=True, pag_applied_layers=["mid"])
    concept = pico_concept(ours)
    with attach(ours, concept), attach(theirs, concept):
        dice = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "pag_scale": PAG}
        drawn = theirs(PROMPT, generator=dice, output_type="latent", **options).images
        assert torch.equal(drawn, picture(bases.of(ours, "pico"), PAG))


def test_a_drawing_that_is_broken_off_leaves_no_trace():
    pipe = pico_sd()
    base, before = bases.of(pipe, "pico"), snapshot(pipe)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        picture(base, PAG, callback_on_step_end=stop)
    assert snapshot(pipe) == before


def test_the_embedded_base_has_a_scale_of_its_own_and_others_none():
    assert bases.of(pico_sd(), "pico").family.pag_scale == 0.0
    base = bases.load()
    assert base.family.pag_scale > 0
    told, seeds = ["photo of a dog"], [0]
    own, same, without = (
        draw(base, told, seeds, steps=2, pag=pag) for pag in (None, base.family.pag_scale, 0.0)
    )
    assert own[0].tobytes() == same[0].tobytes() != without[0].tobytes()


def test_a_concept_that_looks_at_its_photo_is_drawn_without():
    pipe = pico_sd()
    base = replace(bases.of(pipe, "pico"), family=FAMILIES["storybook"])  # which has a scale of its own
    assert not torch.equal(picture(base, None), picture(base, 0.0))
    with attach(pipe, seeing(pipe)):
        assert torch.equal(picture(base, None), picture(base, 0.0))
        with pytest.raises(ConceptError, match="looks at its reference photo.* a scale of 0"):
            picture(base, PAG)


def test_a_pipeline_that_diffusers_has_it_not_for():
    class OwnPipeline(type(pico_sd())):
        pass

    pipe = pico_sd()
    pipe.__class__ = OwnPipeline
    with pytest.raises(BadBase, match="no perturbed-attention guidance for a OwnPipeline; leave it out"):
        picture(bases.of(pipe, "pico"), PAG)
