"""What a drawing may ask of a base: a negative prompt, a size, a scheduler, several pictures at once."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler

import conceptkit as ck
from conceptkit.base import attention, pipeline
from conceptkit.base.schedulers import SCHEDULERS, scheduled
from conceptkit.data import photos
from conceptkit.errors import BadBase, BadPrompt, BadRecipe
from conceptkit.features import caption_statistics, captions
from conceptkit.inference.draw_call import DrawCall, call_options, notices
from conceptkit.registry.store import Registry
from tests import tiny
from tests.learning import SEEDS, TINY, draw_photos, teach

PROMPT = "my_dog in the snow"


@pytest.fixture(scope="module")
def pipe():
    return tiny.pico_sd()


@pytest.fixture(scope="module")
def base(pipe):
    return pipeline.of(pipe, "pico")


@pytest.fixture
def registry(pipe, tmp_path, monkeypatch):
    few = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: few)
    with Registry(tmp_path / "home") as opened:
        concept = dataclasses.replace(tiny.pico_concept(pipe), base_name="pico")
        opened.add("my_dog", concept.to_bytes(), concept.summary())
        yield opened


def draw(base, registry, **options):
    given = {"prompt": PROMPT, "num_inference_steps": 2, **options}
    return ck.draw("my_dog", base=base, registry=registry, **given)


def pixels(drawing):
    return [np.asarray(picture).astype(int) for picture in drawing.images]


def test_a_picture_is_what_the_pipeline_draws_with_the_same_settings(base, registry):
    options = {"negative_prompt": "red grass", "width": 24, "height": 16, "guidance_scale": 3.0}
    drawing = draw(base, registry, seed=5, **options)
    (picture,) = drawing.pictures
    assert picture.picture.size == (24, 16)
    with ck.attach(base.pipe, drawing.merge):
        dice = torch.Generator().manual_seed(5)
        same = base.pipe(PROMPT, num_inference_steps=2, generator=dice, **options).images[0]
    assert np.array_equal(np.asarray(same), np.asarray(picture.picture))
    assert picture.metadata.items() >= options.items()
    plain = draw(base, registry, seed=5, **{**options, "negative_prompt": None})
    assert not np.array_equal(pixels(plain)[0], pixels(drawing)[0])


def test_what_is_not_asked_for_is_not_in_the_metadata(base, registry):
    metadata = draw(base, registry).pictures[0].metadata
    assert not {"negative_prompt", "width", "height", "scheduler", "true_cfg_scale"} & set(metadata)


def test_pictures_at_once_are_those_of_their_seeds(base, registry):
    steps = []
    options = {"count": 3, "seed": 2, "negative_prompt": "grass"}
    together = draw(base, registry, batch_size=2, progress=lambda *step: steps.append(step), **options)
    alone = draw(base, registry, **options)
    assert [drawn.seed for drawn in together.pictures] == [2, 3, 4]
    for one, other in zip(pixels(together), pixels(alone), strict=True):
        assert abs(one - other).max() <= 1
    assert [step[:2] for step in steps if step[2] == "drawing"] == [(1, 4), (2, 4), (3, 4), (4, 4)]


QUICK_SCHEDULERS = ("ddim", "euler", "unipc")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK_SCHEDULERS else pytest.param(name, marks=pytest.mark.slow)
        for name, row in SCHEDULERS.items()
        if not row.flow
    ],
)
def test_each_scheduler_draws_and_the_base_has_its_own_back(base, registry, name):
    own = base.pipe.scheduler
    drawing = draw(base, registry, scheduler=name, num_inference_steps=4)
    assert drawing.pictures[0].metadata["scheduler"] == name
    assert base.pipe.scheduler is own
    with scheduled(base, name, 4):
        other = base.pipe.scheduler
        assert type(other).__name__ == SCHEDULERS[name].class_name
        assert other.config["beta_schedule"] == own.config["beta_schedule"]
        assert other.config.get("clip_sample", False) is False
    with pytest.raises(KeyboardInterrupt), scheduled(base, name, 4):
        raise KeyboardInterrupt
    assert base.pipe.scheduler is own


def test_the_bases_own_scheduler_by_name_draws_the_same(base, registry):
    assert np.array_equal(pixels(draw(base, registry, scheduler="ddim"))[0], pixels(draw(base, registry))[0])


def test_what_an_encoder_does_not_read_is_told(base, registry):
    prompt = f"{PROMPT} {'with a red hat ' * 30}by the night"
    drawing = draw(base, registry, prompt=prompt, negative_prompt="blue " * 100)
    (told, against) = drawing.notices
    assert "reads 77 tokens of a prompt, and leaves out 'with a red hat with" in told
    assert "reads 77 tokens of a negative prompt, and leaves out 'blue blue" in against
    assert not draw(base, registry, prompt="my_dog " + "snow " * 70).notices


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"width": 17}, BadRecipe, "width = 17 is no multiple of 2 pixels, the cell of pico; give 16 or 18"),
        ({"height": 0}, BadRecipe, "height = 0 draws nothing"),
        ({"batch_size": 0}, BadRecipe, "batch_size = 0 draws nothing"),
        ({"scheduler": "magic"}, BadRecipe, "no scheduler 'magic'; choose one of ddim, ddpm"),
        ({"scheduler": "flow_euler"}, BadRecipe, "pico predicts no flow, which flow_euler is not for"),
        ({"scheduler": "lcm", "num_inference_steps": 60}, BadRecipe, "60 make no sense; give 4 to 8"),
        ({"num_inference_steps": 1001}, BadRecipe, "1000 noise levels, so 1001 steps make no sense"),
        ({"true_cfg_scale": 4.0}, BadRecipe, "no setting of StableDiffusionPipeline; give guidance_scale"),
        ({"negative_prompt": "red", "guidance_scale": 1.0}, BadPrompt, "does not read a negative prompt"),
        ({"negative_prompt": "\ud800"}, BadPrompt, "is no text"),
    ],
)
def test_what_a_base_cannot_take_is_one_sentence(base, registry, options, error, sentence):
    own = base.pipe.scheduler
    with pytest.raises(error, match=sentence) as raised:
        draw(base, registry, **options)
    assert "\n" not in str(raised.value) and base.pipe.scheduler is own


# bases that were distilled to draw in a few steps


@pytest.fixture
def distilled():
    """A relative of the base that draws in a few steps."""
    pipe = tiny.pico_sd()
    generator = torch.Generator().manual_seed(1)
    for linear in attention.kv_maps(pipe.unet).values():
        weight = linear.weight.data
        noise = torch.randn(weight.shape, generator=generator)
        weight += 0.05 * weight.norm() / noise.norm() * noise
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipeline.of(pipe, "somebody/pico-LCM")


def test_a_concept_is_drawn_on_a_distilled_relative_with_a_notice(distilled, registry):
    drawing = draw(distilled, registry, num_inference_steps=4, guidance_scale=1.0)
    assert any("relative of somebody/pico-LCM" in text for text in drawing.merge.report.notices)
    assert not drawing.notices
    (notice,) = draw(distilled, registry, num_inference_steps=30).notices
    assert "pico-LCM is distilled to draw in a few steps: try --steps 4" in notice


def test_nothing_is_learned_on_a_distilled_base(distilled, base, tmp_path):
    shown = photos.read(draw_photos(tmp_path, SEEDS))
    with pytest.raises(BadBase, match="is distilled.*learn on the base that it was distilled from"):
        teach(distilled, shown, TINY)
    turbo = dataclasses.replace(base, name="/models/SDXL-Turbo")
    with pytest.raises(BadBase, match="--base stabilityai/stable-diffusion-xl-base-1.0, and draw on this"):
        teach(turbo, shown, TINY)


def test_a_base_that_takes_guidance_as_an_input_needs_true_guidance_for_a_negative_prompt(base):
    class Distilled(type(base.pipe)):
        def __call__(self, prompt, negative_prompt=None, true_cfg_scale=1.0, guidance_scale=3.5, **more):
            """The arguments of FLUX's pipeline."""

    pipe = tiny.pico_sd()
    pipe.__class__ = Distilled
    other = pipeline.of(pipe, "flux")
    with pytest.raises(BadPrompt, match="only with true_cfg_scale above 1"):
        call_options(other, DrawCall(negative_prompt="red"))
    with pytest.raises(BadRecipe, match="guides away from a negative prompt, and there is none"):
        call_options(other, DrawCall(true_cfg_scale=4.0))
    with pytest.raises(BadRecipe, match="Distilled draws in one size alone; leave width out"):
        call_options(other, DrawCall(width=16))
    found = call_options(other, DrawCall(negative_prompt="red", true_cfg_scale=4.0))
    assert found == {"negative_prompt": "red", "true_cfg_scale": 4.0}
    pipe.unet.register_to_config(guidance_embeds=False)
    (notice,) = notices(other, DrawCall(guidance_scale=3.5), 25)
    assert notice.startswith("guidance_scale = 3.5 has no effect on flux")
