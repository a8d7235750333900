"""Concepts drawn at full size, each in its part of a picture, and set in."""

import dataclasses
import functools
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptkit.base import pipeline
from conceptkit.base.noise_schedule import FLOW, NoiseSchedule
from conceptkit.errors import BadRegion
from conceptkit.inference import attach as attaching
from conceptkit.inference import attach_steps, detail, layout_cache
from conceptkit.inference.attach_request import AttachRequest
from conceptkit.inference.detail import hindrance, prediction_of
from conceptkit.inference.layout_attention import Watch
from conceptkit.inference.layout_noise import without_lowest
from conceptkit.inference.outlines import filled, grown
from conceptkit.inference.part_geometry import box_around, cut_out, set_back, softened
from conceptkit.inference.prompt_scene import read_scene
from tests.confining import EVERYWHERE, LEFT, NOWHERE, RIGHT, calls_of_the_unet, place, two
from tests.projected_tiny import pico_kolors
from tests.tiny import pico_sd, pico_sdxl, snapshot

attach = functools.partial(attaching.attach, confine=True, detail=True)
BOTH = "my_dog next to a moongate"
NOUNS = "dog next to a gate"
CORNER = (slice(0, 3), slice(0, 3))


@pytest.fixture(autouse=True)
def quickly(few_captions):
    layout_cache._known.clear()


@pytest.fixture(scope="module")
def pipe():
    return pico_sd()


@pytest.fixture(scope="module")
def pair(pipe):
    return two(pipe)


def drawn(pipe, prompt, output_type="np", steps=4, **options):
    generator = torch.Generator().manual_seed(0)
    more = {"num_inference_steps": steps, "guidance_scale": 2.0, "output_type": output_type, **options}
    return pipe(prompt, generator=generator, **more).images


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl, pico_kolors])
def test_outside_of_all_parts_the_picture_is_the_bases_own_bit_for_bit(build, monkeypatch):
    pipe = build()
    plain = drawn(pipe, NOUNS)
    place(monkeypatch, CORNER, NOWHERE)
    monkeypatch.setattr(detail, "outlines", as_laid_out)
    with attach(pipe, *two(pipe)) as attachment:
        found = drawn(pipe, BOTH)
        (layout,) = attachment.layout.pictures
    assert layout.changed is not None and 0 < layout.changed.mean() < 1
    changed = np.abs(found - plain).max(axis=(0, 3))
    outside = np.kron(layout.changed.numpy() == 0, np.ones([side // 8 for side in changed.shape])) > 0
    assert not changed[outside].any() and changed[~outside].any()
    assert "my_dog was drawn at full size and set in" in " ".join(layout.sentences())


def test_a_picture_is_the_same_in_every_form(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    with attach(pipe, *pair):
        arrays = drawn(pipe, BOTH)
        (picture,) = drawn(pipe, BOTH, "pil")
        tensors = drawn(pipe, BOTH, "pt")
        (listed, _) = drawn_tuple(pipe)
        latents = drawn(pipe, BOTH, "latent")
    assert np.abs(np.asarray(picture) - 255 * arrays[0]).max() <= 0.51
    assert np.allclose(tensors.permute(0, 2, 3, 1).numpy(), arrays, atol=1e-6)
    assert np.array_equal(listed, arrays)
    plain = drawn(pipe, NOUNS, "latent")
    assert latents.shape == plain.shape and not torch.allclose(latents, plain, atol=1e-2)


def drawn_tuple(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe(
        BOTH,
        generator=generator,
        num_inference_steps=4,
        guidance_scale=2.0,
        output_type="np",
        return_dict=False,
    )


def as_laid_out(picture, seen, owners, least, *_):
    """Outlines that are the parts of the layout; all of what is cut out."""
    parts = F.interpolate(owners[None].float(), picture.shape[1:], mode="nearest")[0].numpy() > 0.5
    return [parts for _ in least]


def everything(picture, pixels):
    """All things of a layout have all of its picture, surely and perhaps (N, H, W)."""
    masks = np.ones((len(picture.things), *pixels.shape[1:]), dtype=bool)
    return masks, masks


def test_what_another_thing_has_is_not_drawn_over(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    monkeypatch.setattr(detail, "_places", everything)
    plain = drawn(pipe, NOUNS)
    with attach(pipe, *pair):
        assert np.array_equal(drawn(pipe, BOTH), plain)


def test_where_another_thing_is_a_part_is_held(pipe, pair, monkeypatch):
    """What is known of it there comes out of its drawing as it went in."""

    def overlapping(picture, pixels):
        masks, _ = everything(picture, pixels)
        masks[1, :, masks.shape[2] // 2 :] = False  # the gate has the left half of what the dog has
        return masks, masks

    place(monkeypatch, EVERYWHERE, LEFT)
    monkeypatch.setattr(detail, "_places", overlapping)
    known, ended = [], []
    into, call = detail.latents_of, detail.called_with
    monkeypatch.setattr(detail, "latents_of", lambda *args: known.append(into(*args)) or known[-1])
    monkeypatch.setattr(detail, "called_with", lambda *args: ended.append(call(*args)) or ended[-1])
    with attach(pipe, *pair):
        drawn(pipe, BOTH)
    off = (known[0] - ended[0].images).abs().mean(dim=(0, 1, 2))
    half = len(off) // 2
    assert off[:half].max() < 2e-3 < off[half:].min()


def test_the_bases_thing_is_gone_where_the_concepts_is_not(pipe, pair, monkeypatch):
    """Its place follows from around it, in the middle of which nothing else is."""
    place(monkeypatch, CORNER, NOWHERE)
    corner = np.zeros((2, 16, 16), dtype=bool)
    corner[0, 2:8, 2:8] = True
    monkeypatch.setattr(detail, "_places", lambda *_: (corner, corner))
    dot = np.zeros((1, 16, 16), dtype=bool)
    dot[0, 14:, 14:] = True
    monkeypatch.setattr(detail, "outlines", lambda *_, **__: [dot])
    plain = torch.from_numpy(drawn(pipe, NOUNS)[0]).permute(2, 0, 1)
    with attach(pipe, *pair):
        found = drawn(pipe, BOTH)[0]
    wanted = filled(plain, grown(corner[0])).permute(1, 2, 0).numpy()
    assert np.allclose(found[4:6, 4:6], wanted[4:6, 4:6], atol=1e-4)
    assert np.array_equal(found[12:], plain.permute(1, 2, 0).numpy()[12:])


def test_a_part_is_as_large_as_the_thing_surely_is_and_all_it_may_be_is_taken_away(pipe, pair, monkeypatch):
    place(monkeypatch, CORNER, NOWHERE)

    def by_attention(picture, pixels):
        surely, perhaps = np.zeros((2, 2, 16, 16), dtype=bool)
        surely[0, 2:8, 2:5] = perhaps[0, 2:8, 2:11] = True
        return surely, perhaps

    monkeypatch.setattr(detail, "_places", by_attention)
    boxed, dot = [], np.zeros((1, 16, 16), dtype=bool)
    dot[0, 15:, 15:] = True
    monkeypatch.setattr(detail, "box_around", lambda mask: boxed.append(int(mask.sum())) or box_around(mask))
    monkeypatch.setattr(detail, "outlines", lambda *_, **__: [dot])
    plain = drawn(pipe, NOUNS)[0]
    with attach(pipe, *pair):
        found = drawn(pipe, BOTH)[0]
    assert boxed == [18], "the six rows and three columns where it surely is"
    assert np.abs(found - plain)[4:6, 9:11].max() > 1e-3


def test_parts_are_drawn_together_and_no_more_of_them_than_memory_has_room_for(pipe, pair, monkeypatch):
    """The noise of a part is its own, so it is the same whomever it is drawn with."""
    place(monkeypatch, LEFT, RIGHT)
    together = []
    own = detail.DetailPass._drawn
    monkeypatch.setattr(
        detail.DetailPass, "_drawn", lambda *args: together.append(len(args[4])) or own(*args)
    )
    with attach(pipe, *pair):
        wanted = drawn(pipe, BOTH)
        monkeypatch.setattr(detail, "AT_ONCE", 1)
        found = drawn(pipe, BOTH)
        drawn(pipe, [BOTH, BOTH, NOUNS.replace("dog", "my_dog")])
    assert together == [2, 1, 1, 3, 2]
    assert np.abs(found - wanted).max() < 1e-5


def test_a_part_reads_the_prompt_that_names_its_concept_alone(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    said = []
    with attach(pipe, *pair):
        original = pipe.tokenizer.__class__.__call__

        def note(self, text, *args, **kwargs):
            said.append(text)
            return original(self, text, *args, **kwargs)

        monkeypatch.setattr(pipe.tokenizer.__class__, "__call__", note)
        drawn(pipe, BOTH)
    texts = [text for one in said for text in ([one] if isinstance(one, str) else one)]
    alone = [text for text in texts if ("<my_dog>" in text) != ("<moongate>" in text)]
    assert any("<my_dog>" in text and "gate" not in text for text in alone)
    assert any("<moongate>" in text and "dog" not in text for text in alone)


def test_what_it_costs(pipe, pair, monkeypatch):
    """The layout to its end, and the steps in which all parts are drawn; the picture itself nothing."""
    place(monkeypatch, LEFT, RIGHT)
    with attach(pipe, *pair):
        count = calls_of_the_unet(pipe, lambda: drawn(pipe, BOTH, steps=8))
        again = calls_of_the_unet(pipe, lambda: drawn(pipe, BOTH, steps=8))
    steps = detail._of_a_part(8)
    assert count == 8 + steps and again <= 1 + steps, "a layout that is known takes one call"


def test_several_prompts_and_pictures_at_once_are_those_of_single_calls(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    prompts = [BOTH, "a moongate by my_dog"]
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "np"}

    def dice(seed):
        return torch.Generator().manual_seed(seed)

    with attach(pipe, *pair):
        together = pipe(
            prompts, generator=[dice(1), dice(2)], negative_prompt=["red", "blue"], **options
        ).images
        single = [
            pipe(text, generator=dice(seed), negative_prompt=word, **options).images[0]
            for text, word, seeds in zip(prompts, ("red", "blue"), ((1, 3), (2, 4)), strict=True)
            for seed in seeds
        ]
        two_each = pipe(
            prompts,
            generator=[dice(seed) for seed in (1, 3, 2, 4)],
            negative_prompt=["red", "blue"],
            num_images_per_prompt=2,
            **options,
        ).images
    assert np.abs(together - np.stack(single)[::2]).max() < 1e-5
    assert len(two_each) == 4 and np.abs(two_each - np.stack(single)).max() < 1e-5


def test_a_part_takes_more_in_and_weighs_its_rim_less_than_a_layout(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    asked, own = [], detail.outlines
    monkeypatch.setattr(detail, "outlines", lambda *args: asked.append(args[3:]) or own(*args))
    with attach(pipe, *pair):
        drawn(pipe, BOTH)
    of_layout, *of_parts = asked
    assert of_layout == ((detail.SURELY, detail.PERHAPS),)
    assert of_parts == [([detail.CUT_OUT], detail.RIM_OF_A_PART)] * 2


def test_each_part_has_a_noise_of_its_own(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    noise, call = [], detail.called_with
    monkeypatch.setattr(detail, "called_with", lambda *args: noise.append(args[2]["latents"]) or call(*args))
    with attach(pipe, *pair):
        drawn(pipe, BOTH)
    (both,) = noise
    assert len(both) == 2 and not torch.allclose(both[0], both[1], atol=0.1)
    assert both.mean(dim=(2, 3)).abs().max() < 1e-3, "without its lowest frequencies"


def test_a_part_that_reaches_beyond_the_bases_thing_is_shown_there(pipe, pair, monkeypatch):
    place(monkeypatch, CORNER, NOWHERE)
    corner = np.zeros((2, 16, 16), dtype=bool)
    corner[0, 4:8, 4:8] = True
    monkeypatch.setattr(detail, "_places", lambda *_: (corner, corner))
    monkeypatch.setattr(detail, "outlines", lambda *_: [np.ones((1, 16, 16), dtype=bool)])
    with attach(pipe, *pair) as attachment:
        drawn(pipe, BOTH)
        (layout,) = attachment.layout.pictures
    x0, y0, x1, y1 = (edge // 2 for edge in box_around(torch.from_numpy(corner[0])))
    assert layout.changed[y0:y1, x0:x1].all() and (y1 - y0) * (x1 - x0) > 4


@pytest.mark.parametrize(
    ("prompt", "front"), [("my_dog before a moongate", 0), ("my_dog behind a moongate", 1)]
)
def test_what_stands_before_another_is_set_in_after_it(pipe, pair, monkeypatch, prompt, front):
    """Both things have all of the picture, so the one behind is not seen."""
    place(monkeypatch, LEFT, RIGHT)
    monkeypatch.setattr(detail, "_places", everything)
    monkeypatch.setattr(
        detail, "outlines", lambda picture, *_, **__: [np.ones((1, *picture.shape[1:]), dtype=bool)]
    )
    parts = {}
    own = detail.DetailPass._drawn
    monkeypatch.setattr(detail.DetailPass, "_drawn", lambda *args: parts.update(found := own(*args)) or found)
    with attach(pipe, *pair):
        found = drawn(pipe, prompt)[0]
    assert parts.keys() == {(0, 0), (0, 1)}
    wanted, other = (parts[0, i][0].permute(1, 2, 0).numpy() for i in (front, 1 - front))
    assert np.allclose(found, wanted, atol=1e-5) and not np.allclose(found, other, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda pipe, more: setattr(pipe, "watermark", object()), "watermark would not see"),
        (
            lambda pipe, more: more.update(negative_prompt_embeds=torch.zeros(1, 1, 1)),
            "negative_prompt_embeds",
        ),
        (lambda pipe, more: more.update(denoising_end=0.5), "denoising_end is given"),
        (lambda pipe, more: setattr(pipe, "scheduler", EDMEulerScheduler()), "held by a EDMEulerScheduler"),
    ],
)
def test_what_hinders_a_part_is_named(change, why):
    pipe, more = pico_sd(), {}
    assert hindrance(pipe, [], more) is None
    change(pipe, more)
    assert why in hindrance(pipe, [], more)


def test_a_checker_that_comes_later_is_not_passed_by_with_a_kept_layout(monkeypatch):
    pipe = pico_sd()
    place(monkeypatch, LEFT, RIGHT)
    with attach(pipe, *two(pipe)) as attachment:
        drawn(pipe, BOTH)
        assert attachment.layout.pictures[0].changed is not None
        monkeypatch.setattr(pipe, "watermark", object(), raising=False)
        drawn(pipe, BOTH)
        (layout,) = attachment.layout.pictures
    assert layout.changed is None and "watermark would not see" in " ".join(layout.sentences())


def test_in_half_precision_a_picture_is_finite():
    pipe = pico_sd().to(torch.bfloat16)
    with attach(pipe, *two(pipe)):
        assert np.isfinite(drawn(pipe, BOTH)).all()


def test_a_scheduler_of_two_calls_a_step_takes_as_many_steps(pipe, pair, monkeypatch):
    before = pipe.scheduler
    monkeypatch.setattr(pipe, "scheduler", HeunDiscreteScheduler.from_config(before.config))
    place(monkeypatch, LEFT, RIGHT)
    with attach(pipe, *pair):
        count = calls_of_the_unet(pipe, lambda: drawn(pipe, BOTH, steps=8))
    steps = detail._of_a_part(8)
    assert count == 15 + (2 * steps - 1)


@pytest.mark.parametrize(("whole", "part"), [(50, 16), (25, 8), (8, 4), (3, 3), (1, 1)])
def test_a_part_takes_a_third_of_the_steps_and_four_at_least(whole, part):
    assert detail._of_a_part(whole) == part


def test_a_scheduler_that_begins_with_four_steps_draws_parts(pipe, pair, monkeypatch):
    scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=False)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    place(monkeypatch, LEFT, RIGHT)
    with attach(pipe, *pair) as attachment:
        assert np.isfinite(drawn(pipe, BOTH, steps=6)).all()
        assert "drawn at full size" in " ".join(attachment.layout.pictures[0].sentences())


def test_a_plural_is_looked_for_by_its_token(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    seen = []
    own = detail.DetailPass._own_words
    monkeypatch.setattr(detail.DetailPass, "_own_words", lambda *args: seen.append(own(*args)) or seen[-1])
    with attach(pipe, *pair):
        drawn(pipe, "two my_dogs next to a moongate")
    assert len(seen) == 1 and all(own_words.sum() > 0 for own_words in seen[0])


def test_what_suits_a_base_is_not_done_with_regions(pipe, pair):
    here = pipeline.of(pipe)
    small = dataclasses.replace(here, family=dataclasses.replace(here.family, detail=True))
    request = AttachRequest(pair)
    assert attach_steps.detail_pass(small, pair[0], request) is not None
    assert attach_steps.detail_pass(here, pair[0], request) is None
    assert attach_steps.detail_pass(small, pair[0], AttachRequest(pair, regions=["my_dog=left"])) is None
    assert attach_steps.detail_pass(small, pair[0], AttachRequest(pair, detail=False)) is None


def test_a_pipeline_is_as_it_was_afterwards(pipe, pair, monkeypatch):
    before = snapshot(pipe)
    place(monkeypatch, LEFT, RIGHT)
    with attach(pipe, *pair):
        drawn(pipe, BOTH)
    after = snapshot(pipe)
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[k], v) if isinstance(v, torch.Tensor) else after[k] == v for k, v in before.items()
    )
    assert "forward" not in vars(pipe.unet)


def test_what_cannot_be_drawn_at_full_size_is_refused(pipe, pair):
    with pytest.raises(BadRegion, match="not by regions"):
        attach(pipe, *pair, regions=["my_dog=left"])
    with pytest.raises(BadRegion, match="confine the concepts"):
        attaching.attach(pipe, *pair, confine=False, detail=True)
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(BadRegion, match="leave detail out"):
        attaching.attach(other, *two(other), confine=True, detail=True)


def test_a_drawing_that_fails_leaves_no_part_behind(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    with attach(pipe, *pair):
        wanted = drawn(pipe, BOTH)
        monkeypatch.setattr(detail, "prediction_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drawn(pipe, BOTH)
        monkeypatch.setattr(detail, "prediction_of", prediction_of)
        assert np.abs(drawn(pipe, BOTH) - wanted).max() < 1e-6


def test_a_concept_that_no_outline_is_found_of_leaves_what_the_base_drew(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    sides = np.zeros((2, 16, 16), dtype=bool)
    sides[0, 4:12, 1:4] = sides[1, 4:12, 12:15] = True
    monkeypatch.setattr(detail, "_places", lambda *_: (sides, sides))
    found = iter([np.zeros((1, 16, 16), dtype=bool), np.ones((1, 16, 16), dtype=bool)])
    monkeypatch.setattr(detail, "outlines", lambda *_, **__: [next(found)])
    plain = drawn(pipe, NOUNS)[0]
    with attach(pipe, *pair) as attachment:
        picture = drawn(pipe, BOTH)[0]
        said = attachment.layout.pictures[0].sentences()
    assert np.array_equal(picture[:, :4], plain[:, :4]) and not np.allclose(picture[:, 12:], plain[:, 12:])
    assert "moongate was drawn at full size and set in; --no-detail leaves it out." in said
    assert any(one.startswith("my_dog could not be told from its background") for one in said)


def test_what_is_not_found_has_all_of_its_part(pipe, pair, monkeypatch):
    """Its outline would be that of something else."""
    place(monkeypatch, LEFT, RIGHT, found=False)
    with attach(pipe, *pair) as attachment:
        drawn(pipe, BOTH)
        (layout,) = attachment.layout.pictures
    pixels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    masks = F.interpolate(layout.masks[None], (16, 16), mode="bilinear")[0].numpy() > 0.5
    assert all(np.array_equal(places, masks) for places in detail._places(layout, pixels))
    there = dataclasses.replace(
        layout, things=tuple(dataclasses.replace(thing, found=True) for thing in layout.things)
    )
    assert not any(np.array_equal(places, masks) for places in detail._places(there, pixels))


def test_who_keeps_out_of_whom():
    """A plain thing is not drawn again, so what is behind it keeps out of it."""
    words = {"my_dog": "<my_dog> dog", "moongate": "<moongate> gate"}
    front = read_scene("my_dog in front of a moongate in front of a tree", words, ["tree"])
    assert [detail._beside(front, i) for i in range(2)] == [[], []]
    assert front.behind(0) == {1, 2} and front.before(2) == {0, 1}
    behind = read_scene("my_dog behind a tree next to a moongate", words, ["tree"])
    assert [detail._beside(behind, i) for i in (0, 2)] == [[1, 2], [0, 1]]


@pytest.mark.parametrize(
    ("given", "steps"),
    [({"num_inference_steps": 30}, 30), ({"timesteps": [9, 5, 1]}, 3), ({"sigmas": [1.0, 0.5]}, 2), ({}, 50)],
)
def test_a_part_takes_a_share_of_the_steps_that_are_asked_for(pipe, given, steps):
    signature = inspect.signature(pipe.__call__)
    assert detail._steps(signature.bind_partial("a dog", **given)) == steps


def test_outlines_come_from_the_rows_that_read_the_prompt(pipe, pair, monkeypatch):
    """With guidance these stand behind those that do not."""
    place(monkeypatch, LEFT, RIGHT)
    rows = []
    look = Watch.look

    def note(self, module, args, kwargs, picks):
        if self.own.shape[2] == 1:
            rows.append((picks.tolist(), len(args[0] if args else kwargs["hidden_states"])))
        return look(self, module, args, kwargs, picks)

    monkeypatch.setattr(Watch, "look", note)
    with attach(pipe, *pair):
        drawn(pipe, BOTH)
        assert set(map(str, rows)) == {"([2, 3], 4)"}
        rows.clear()
        drawn(pipe, BOTH, guidance_scale=1.0)
    assert set(map(str, rows)) == {"([0, 1], 2)"}


# The mathematics


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_who_predicts_what_is_known_ends_at_it(predicts):
    """From pure noise, by a scheduler of diffusers."""
    scheduler = DDIMScheduler(
        prediction_type=predicts, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    dice = torch.Generator().manual_seed(0)
    known, x = (torch.randn(2, 4, 8, 8, generator=dice, dtype=torch.float64) for _ in range(2))
    for time in scheduler.timesteps:
        guess = prediction_of(known, torch.cat([x, x]), time, scheduler)
        assert torch.equal(guess[:2], guess[2:]), "both halves of guidance"
        x = scheduler.step(guess[:2], time, x).prev_sample
    assert torch.allclose(x, known, atol=1e-4)


@pytest.mark.parametrize("predicts", ["epsilon", FLOW])
def test_the_noise_in_a_picture_is_what_was_added(predicts):
    sigmas = torch.linspace(0.1, 1.0, 10, dtype=torch.float64)
    flow = {"sigmas": sigmas, "times": sigmas} if predicts == FLOW else {}
    schedule = NoiseSchedule(predicts, torch.linspace(0.99, 0.01, 10, dtype=torch.float64), **flow)
    dice = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(10, 1, 2, 2, generator=dice, dtype=torch.float64) for _ in range(2))
    t = torch.arange(10)
    assert torch.allclose(schedule.noise_in(schedule.add_noise(clean, noise, t), clean, t), noise)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_box_is_in_the_picture_and_around_its_part(data):
    height, width = (data.draw(st.integers(16, 80)) for _ in range(2))
    y, x = data.draw(st.integers(0, height - 2)), data.draw(st.integers(0, width - 2))
    tall, wide = data.draw(st.integers(1, height - y)), data.draw(st.integers(1, width - x))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y : y + tall, x : x + wide] = True
    x0, y0, x1, y1 = box_around(mask)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert x0 <= x + 1 and y0 <= y + 1 and x1 >= x + wide - 1 and y1 >= y + tall - 1
    assert abs((x1 - x0) / width - (y1 - y0) / height) <= 1 / min(height, width), "of the picture's shape"


def test_no_part_is_all_of_the_picture():
    assert box_around(torch.zeros(8, 12, dtype=torch.bool)) == (0, 0, 12, 8)


def test_what_is_set_back_is_in_its_box_alone():
    dice = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 32, 32, generator=dice)
    whole = [(0, 0, 32, 32)] * 2
    assert torch.allclose(cut_out(pictures, whole), pictures, atol=1e-6)
    boxes = [(4, 8, 20, 24), (0, 0, 16, 16)]
    found = set_back(torch.ones_like(pictures), boxes, pictures)
    for one, before, (x0, y0, x1, y1) in zip(found, pictures, boxes, strict=True):
        assert (one[:, y0:y1, x0:x1] == 1).all()
        one[:, y0:y1, x0:x1] = before[:, y0:y1, x0:x1]
        assert torch.equal(one, before)
    flat = torch.full((1, 3, 32, 32), 0.25)
    assert torch.allclose(cut_out(flat, [(4, 8, 20, 24)]), flat, atol=1e-6)


def test_edges_are_soft_and_nothing_is_lost():
    free = torch.zeros(1, 1, 64, 64)
    free[..., 16:48, 16:48] = 1
    soft = softened(free)
    assert soft.sum().item() == pytest.approx(free.sum().item(), rel=1e-4)
    across = soft[0, 0, 32]
    assert across[32] == pytest.approx(1) and 0.75 < across[16] < 0.95 and 0.05 < across[15] < 0.25
    assert across[8] == 0


def test_noise_without_its_lowest_frequencies():
    noise = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    found = without_lowest(noise, 3)
    across = torch.cos(math.pi * 2 * (torch.arange(24) + 0.5) / 24)
    for wave in (torch.ones(16, 24), across.expand(16, 24)):
        assert (found * wave).sum(dim=(2, 3)).abs().max() < 1e-3 < (noise * wave).sum(dim=(2, 3)).abs().min()
    assert torch.allclose(found.std(dim=(1, 2, 3)), torch.ones(2), atol=1e-5)
    assert torch.nn.functional.cosine_similarity(found.flatten(1), noise.flatten(1)).min() > 0.97
