"""Drawing on transformers: what each pipeline takes, in its own way, and what is said where it does not."""

import dataclasses

import numpy as np
import pytest
import torch

import conceptkit as ck
from conceptkit.base import pipeline
from conceptkit.base.schedulers import SCHEDULERS
from conceptkit.errors import BadPrompt, BadRecipe
from conceptkit.features import caption_statistics, captions
from conceptkit.registry.store import Registry
from tests import tiny
from tests import transformers_tiny as made

PROMPT = "my_dog in the snow"
MAKERS = {"sd3": made.pico_sd3, "flux": made.pico_flux, "pixart": made.pico_pixart}


@pytest.fixture(scope="module", params=MAKERS)
def base(request):
    return pipeline.of(MAKERS[request.param](), request.param)


@pytest.fixture
def registry(base, tmp_path, monkeypatch):
    few = captions.captions("any")[:20]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: few)
    with Registry(tmp_path / "home") as opened:
        concept = dataclasses.replace(tiny.pico_concept(base.pipe), base_name=base.name)
        opened.add("my_dog", concept.to_bytes(), concept.summary())
        yield opened


def draw(base, registry, **options):
    given = {"prompt": PROMPT, "num_inference_steps": 2, **options}
    return ck.draw("my_dog", base=base, registry=registry, **given)


def test_it_draws_what_the_pipeline_draws(base, registry):
    steps, options = [], {"width": 24, "height": 16, "negative_prompt": "red grass", "guidance_scale": 3.0}
    if base.name == "flux":
        options["true_cfg_scale"] = 2.0
    progress = lambda *step: steps.append(step)  # noqa: E731
    drawing = draw(base, registry, seed=4, progress=progress, **options)
    (picture,) = drawing.images
    assert picture.size == (24, 16) and drawing.pictures[0].metadata.items() >= options.items()
    assert [step[0] for step in steps if step[2] == "drawing"] == [1, 2]
    more = base.architecture.draw_options(base.pipe)
    with ck.attach(base.pipe, drawing.merge):
        dice = torch.Generator().manual_seed(4)
        same = base.pipe(PROMPT, num_inference_steps=2, generator=dice, **options, **more).images[0]
    assert np.array_equal(np.asarray(same), np.asarray(picture))
    plain = draw(base, registry, seed=4, **{**options, "negative_prompt": None, "true_cfg_scale": None})
    assert not np.array_equal(np.asarray(plain.images[0]), np.asarray(picture))


def test_several_at_once(base, registry):
    together = draw(base, registry, count=2, batch_size=2)
    for k, picture in enumerate(together.images):
        alone = draw(base, registry, seed=k).images[0]
        assert abs(np.asarray(alone).astype(int) - np.asarray(picture)).max() <= 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_draw_or_say_why_not(base, registry, name):
    own = base.pipe.scheduler
    flow = base.name != "pixart"
    takes = SCHEDULERS[name].flow == flow and (base.name != "flux" or name == "flow_euler")
    if takes:
        draw(base, registry, scheduler=name, num_inference_steps=4)
    else:
        sentence = "which .* is not for|says its noise levels itself, .* choose flow_euler, or leave it out"
        with pytest.raises(BadRecipe, match=sentence):
            draw(base, registry, scheduler=name)
    assert base.pipe.scheduler is own


def test_what_it_cannot_take(base, registry):
    cell = base.architecture.size_multiple(base.pipe)
    assert cell == 4
    with pytest.raises(BadRecipe, match=rf"width = 18 is no multiple of 4 pixels, the cell of {base.name}"):
        draw(base, registry, width=18)
    if base.name == "flux":
        with pytest.raises(BadPrompt, match="reads a negative prompt only with true_cfg_scale above 1"):
            draw(base, registry, negative_prompt="red")
    else:
        with pytest.raises(BadRecipe, match="true_cfg_scale = 4 is no setting of"):
            draw(base, registry, true_cfg_scale=4.0)
    if base.name == "sd3":
        most = base.architecture.largest_size(base.pipe)
        with pytest.raises(BadRecipe, match=f"is more than sd3 knows positions for; at most {most}"):
            draw(base, registry, height=most + 4)
        assert draw(base, registry, height=most).images[0].size[1] == most


def test_a_long_prompt_is_cut_where_its_last_encoder_ends(base, registry):
    room = {"sd3": 256, "flux": 512, "pixart": 300}[base.name]
    fits = draw(base, registry, prompt="my_dog " + "snow " * 100)
    assert not [text for text in fits.notices if "leaves out" in text]
    cut = draw(base, registry, prompt="my_dog " + "snow " * 600)
    assert f"reads {room} tokens of a prompt, and leaves out 'snow snow" in cut.notices[-1]


def test_a_scale_that_a_transformer_does_not_take_is_told():
    schnell = pipeline.of(made.pico_flux(guidance=False), "FLUX.1-schnell")
    from conceptkit.inference.draw_call import DrawCall, notices

    few, scale = notices(schnell, DrawCall(guidance_scale=3.5), 25)
    assert "distilled to draw in a few steps" in few and "guidance_scale = 3.5 has no effect" in scale
