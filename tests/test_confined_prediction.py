"""One frame on transformers: layouts by predictions without a noun, and each concept in calls of its own."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

from conceptkit.base import pipeline
from conceptkit.base.architectures import architecture_of, denoiser_of
from conceptkit.concepts.gates import reads_text
from conceptkit.errors import BadRegion
from conceptkit.features import caption_statistics, captions
from conceptkit.inference import attach as attaching
from conceptkit.inference import call_texts, layout_cache
from conceptkit.inference.call_texts import CallTexts, Unreadable
from conceptkit.inference.confine_by_prediction import ByPrediction
from conceptkit.inference.generate import draw
from conceptkit.inference.layout import LayoutWarning
from conceptkit.inference.layout_differences import DifferenceWatch, noise_shares, watched_steps
from conceptkit.inference.prompt_scene import read_scene, without
from conceptkit.tuners import targets
from tests import language_model_tiny, projected_tiny, transformers_tiny
from tests.confining import EVERYWHERE, NOWHERE, place
from tests.tiny import pico_concept, state_hash

BOTH, NOUNS = "a my_dog in front of a moongate", "a dog in front of a gate"
LEFT, RIGHT = (slice(None), slice(0, 4)), (slice(None), slice(6, 8))
MAKERS = {
    "sd3": transformers_tiny.pico_sd3,
    "flux": transformers_tiny.pico_flux,
    "pixart": transformers_tiny.pico_pixart,
    **language_model_tiny.MAKERS,
    **{name: make for name, make in projected_tiny.MAKERS.items() if name != "kolors"},
}
SLOW = ("auraflow", "chroma", "flux2", "sana", "if")
"""Families that differ little from another in how they are called."""
FAMILIES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MAKERS]
WITHOUT_NORM = {"lumina2": {"cfg_normalization": False}}
"""Guidance that scales whole rows of a picture by what is in them, which is no matter of confinement."""


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)
    layout_cache._known.clear()


@functools.cache
def pipe_of(family):
    return MAKERS[family]()


def concept(pipe, name="my_dog", noun="dog", seed=0, rank=2, words=True):
    """A concept of random values on the maps of text, and a LoRA beside them; words=False: that alone."""
    made, make = pico_concept(pipe, name, noun, seed=seed), torch.Generator().manual_seed(seed)
    kind = architecture_of(pipe)
    beside = {
        path: (0.5 * torch.randn(o, rank, generator=make), torch.randn(rank, d, generator=make) * d**-0.5)
        for path, map in targets.find(denoiser_of(pipe), kind.presets["attn"]).items()
        if not reads_text(path)
        for o, d in [map.weight.shape]
    }
    delta = {**made.delta, **beside} if words else beside
    return dataclasses.replace(made, delta=delta, recipe={**made.recipe, "gated_lora_rank": rank})


def pair(pipe, **options):
    return concept(pipe, **options), concept(pipe, "moongate", "gate", seed=1, **options)


def drawn_by(family, prompt=BOTH, seed=0, steps=4, **options):
    """What the pipeline gives as latents, as (n, c, h, w)."""
    pipe, kind = pipe_of(family), architecture_of(pipe_of(family))
    prompts = [prompt] if isinstance(prompt, str) else prompt
    asked = kind.guided({"guidance_scale": 2.0}, len(prompts)) | kind.draw_options(pipe)
    asked |= WITHOUT_NORM.get(family, {}) | {"output_type": kind.latent_output, **options}
    asked.setdefault("generator", torch.Generator().manual_seed(seed))
    return kind.drawn_latents(pipe, pipe(prompt=list(prompts), num_inference_steps=steps, **asked).images)


def calls_of(family, draw):
    """How often the denoiser itself runs in a drawing."""
    counted, denoiser = [], denoiser_of(pipe_of(family))
    block = next(module for name, module in denoiser.named_modules() if name.endswith("blocks.0"))
    hook = block.register_forward_hook(lambda *_: counted.append(1))
    try:
        draw()
    finally:
        hook.remove()
    return len(counted)


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_of_all_parts_the_picture_is_the_bases_own(family, monkeypatch):
    pipe, before = pipe_of(family), state_hash(denoiser_of(pipe_of(family)))
    plain = drawn_by(family, NOUNS)
    wide = plain.shape[-1] // 2
    place(monkeypatch, (slice(None), slice(0, wide)), NOWHERE)
    with attaching.attach(pipe, *pair(pipe)) as attachment:
        drawn = drawn_by(family)
        assert attachment.layout is not None
    off = (drawn - plain).abs()
    assert off[..., wide:].max() < 1e-5 and off[..., :wide].max() > 1e-4
    assert state_hash(denoiser_of(pipe)) == before and torch.equal(drawn_by(family, NOUNS), plain)


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart"])
def test_parts_outlive_the_hooks_of_model_offload(family):
    pipe = pipe_of(family)
    with attaching.attach(pipe, *pair(pipe)):
        wanted = drawn_by(family)
    pipe.enable_model_cpu_offload(device="cpu")
    try:
        with attaching.attach(pipe, *pair(pipe)):
            for _ in range(3):
                layout_cache._known.clear()
                assert torch.equal(drawn_by(family), wanted)
    finally:
        pipe.remove_all_hooks()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_concept_whose_part_is_the_whole_picture_is_drawn_as_it_is_alone(family, monkeypatch):
    pipe = pipe_of(family)
    dog, gate = pair(pipe)
    place(monkeypatch, EVERYWHERE, NOWHERE)
    with attaching.attach(pipe, dog, gate, merge_method="routed"):
        drawn = drawn_by(family)
    with attaching.attach(pipe, dog, merge_method="routed", confine=False):
        wanted = drawn_by(family, BOTH.replace("a moongate", "a gate"))
    acts = (wanted - drawn_by(family, NOUNS)).abs().max()
    assert (drawn - wanted).abs().max() < 0.02 * acts, "but for the rounding of what is stored"


def test_a_word_that_is_its_noun_and_a_delta_of_nothing_change_nothing(monkeypatch):
    pipe = pipe_of("sd3")
    dog, gate = pair(pipe)
    nothing = {name: (0 * factors.up, factors.down) for name, factors in gate.delta.items()}
    gate = dataclasses.replace(gate, tokens={}, words={"moongate": "gate"}, delta=nothing)
    place(monkeypatch, NOWHERE, EVERYWHERE)
    with attaching.attach(pipe, dog, gate, merge_method="routed"):
        assert torch.allclose(drawn_by("sd3"), drawn_by("sd3", NOUNS), atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen-image", "z-image"])
def test_the_lora_of_one_concept_is_nothing_to_the_other(family, monkeypatch):
    pipe, seen, parts = pipe_of(family), [], ByPrediction._parts
    dog, gate = pair(pipe, words=False)
    other = concept(pipe, "moongate", "gate", seed=7, words=False)
    other = dataclasses.replace(other, tokens=gate.tokens)

    def noted(self, *args):
        seen[-1].append(parts(self, *args))
        return seen[-1][-1]

    monkeypatch.setattr(ByPrediction, "_parts", noted)
    place(monkeypatch, LEFT, RIGHT)
    for second in (gate, other):
        seen.append([])
        with attaching.attach(pipe, dog, second):
            drawn_by(family)
    halves = 2 if family == "qwen-image" else 1  # each half of guidance has a call
    for one, two in zip(seen[0][:halves], seen[1][:halves], strict=True):
        assert torch.equal(one[0], two[0])
    assert not torch.allclose(seen[0][0][1], seen[1][0][1], atol=1e-4)


def test_without_a_lora_each_further_concept_costs_the_rows_of_its_prompt(monkeypatch):
    pipe, rows = pipe_of("sd3"), []
    place(monkeypatch, LEFT, RIGHT)
    block = pipe.transformer.transformer_blocks[0]
    hook = block.register_forward_hook(lambda *given: rows.append(len(given[2][1])))
    with attaching.attach(pipe, pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1)):
        drawn_by("sd3")
    hook.remove()
    assert rows[-8:] == [2, 1] * 4


def test_the_first_steps_are_those_of_the_layout_and_early_ones_are_carried_over(monkeypatch):
    pipe = pipe_of("flux2 klein")
    plain = drawn_by("flux2 klein", NOUNS, steps=8)
    found = []
    with attaching.attach(pipe, *pair(pipe)):
        for sparse in (0.0, 0.75):
            place(monkeypatch, LEFT, RIGHT, replayed=0.25, sparse=sparse)
            drawn_by("flux2 klein", steps=8)  # which is laid out once
            draw_it = functools.partial(drawn_by, "flux2 klein", steps=8)
            calls = calls_of("flux2 klein", lambda draw_it=draw_it: found.append(draw_it()))
            # Two calls for the layout's first step, six drawn steps, both halves of guidance, two concepts.
            assert calls == 2 + (24 if not sparse else 16)
    full, sparse = found
    assert (sparse - full).norm() < 0.75 * (plain - full).norm()
    assert not torch.equal(full, sparse)


def test_a_layout_is_drawn_once(monkeypatch):
    pipe, found = pipe_of("sd3"), []
    place(monkeypatch, LEFT, RIGHT)
    with attaching.attach(pipe, *pair(pipe)) as attachment:
        counts = [calls_of("sd3", lambda s=s: found.append(drawn_by("sd3", seed=s))) for s in (0, 0, 1)]
        assert counts[1] < counts[0] == counts[2] and torch.equal(found[0], found[1])
        attachment.strengths = {"my_dog": 0.5}
        assert calls_of("sd3", lambda: found.append(drawn_by("sd3"))) == counts[1]
    assert not torch.allclose(found[0], found[-1])


@pytest.mark.parametrize("family", ["sd3", "qwen-image", "z-image", "flux2 klein", "hunyuan-dit"])
def test_several_prompts_and_pictures_are_as_each_alone(family, monkeypatch):
    pipe = pipe_of(family)
    place(monkeypatch, LEFT, RIGHT)
    prompts = [BOTH, "a moongate by a my_dog at night"]
    with attaching.attach(pipe, *pair(pipe)):
        alone = [drawn_by(family, text, seed=s) for text in prompts for s in (0, 1)]
        dice = [torch.Generator().manual_seed(s) for s in (0, 1, 0, 1)]
        # Qwen-Image says the shapes of its pictures for one of each prompt.
        several = {"num_images_per_prompt": 2}
        if family == "qwen-image":
            prompts, several = [text for text in prompts for _ in range(2)], {}
        many = drawn_by(family, prompts, generator=dice, **several)
    for one, wanted in zip(many, alone, strict=True):
        assert torch.allclose(one, wanted[0], atol=1e-3)


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen-image", "flux2 klein", "z-image", "pixart"])
def test_other_noise_is_what_the_pipeline_would_draw(family, monkeypatch):
    """The first is that of the call, and another is taken as it is given."""
    pipe = pipe_of(family)
    place(monkeypatch, LEFT, RIGHT, found=False)
    with (
        attaching.attach(pipe, *pair(pipe)) as attachment,
        pytest.warns(LayoutWarning, match="try another seed, or a --region for my_dog.$"),
    ):
        drawn_by(family)
    noise = attachment.layout.noise
    given = drawn_by(family, NOUNS, latents=noise)
    assert torch.allclose(given, drawn_by(family, NOUNS), atol=1e-5), "the first is as good as the others"
    place(monkeypatch, LEFT, RIGHT, found=[False, True, True])
    with attaching.attach(pipe, *pair(pipe)) as attachment:
        drawn = drawn_by(family)
    assert attachment.layout.pictures[0].tries == 2
    plain = drawn_by(family, NOUNS, latents=attachment.layout.noise)
    assert torch.allclose(drawn[..., 4:6], plain[..., 4:6], atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_region_is_its_concepts_part_and_beside_it_the_base_draws_without_the_noun(family):
    pipe, seen = pipe_of(family), []
    with (
        attaching.attach(pipe, *pair(pipe), regions=["my_dog=left"]) as attachment,
        pytest.warns(LayoutWarning),
    ):
        drawn_by(family, "a my_dog next to a moongate", steps=5)
    dog, gate = attachment.layout.pictures[0].masks
    assert (dog[:, :4] == 1).all() and (dog[:, 4:] == 0).all() and not gate[:, :4].any()
    assert attachment.layout.pictures[0].things[0].given
    denoiser, kind = denoiser_of(pipe), architecture_of(pipe)
    hook = denoiser.register_forward_hook(lambda *given: seen.append(kind.unpacked(given[2][0], (8, 8))))
    noise = {} if attachment.layout.noise is None else {"latents": attachment.layout.noise}
    for prompt in ("a dog next to a gate", "next to a gate"):
        drawn_by(family, prompt, steps=5, **noise)
    hook.remove()
    first, row = attachment.layout.predictions[0], -1
    whole, alone = seen[0][row], seen[len(seen) // 2][row]
    assert torch.allclose(first[row][..., :4], whole[..., :4], atol=1e-5)
    assert torch.allclose(first[row][..., 4:], alone[..., 4:], atol=1e-5)
    assert not torch.allclose(whole[..., 4:], alone[..., 4:], atol=1e-5)


def test_what_takes_a_unet_is_a_sentence():
    pipe = pipe_of("sd3")
    for options in ({"auto_regions": True}, {"regions": ["my_dog=left"], "confine": False}):
        with pytest.raises(BadRegion, match="leave them out"), attaching.attach(pipe, *pair(pipe), **options):
            pass


def test_a_call_that_cannot_be_read_is_refused_or_drawn_as_it_is(monkeypatch):
    pipe = pipe_of("sd3")
    with attaching.attach(pipe, *pair(pipe), confine=False):
        wanted = drawn_by("sd3")
    monkeypatch.setattr(call_texts, "_same", lambda row, known: False)
    said = "How a StableDiffusion3Pipeline gives its denoiser prompt and picture is unknown"
    with (
        attaching.attach(pipe, *pair(pipe), confine=True),
        pytest.raises(BadRegion, match=said),
    ):
        drawn_by("sd3")
    with attaching.attach(pipe, *pair(pipe)), pytest.warns(LayoutWarning, match=said):
        assert torch.equal(drawn_by("sd3"), wanted)


def test_a_picture_beside_the_one_that_is_drawn_is_said_to_be_in_the_way():
    """FLUX.1 Kontext reads both as one sequence."""
    pipe = FluxKontextPipeline(**pipe_of("flux").components)
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = 8
    asked = {"image": torch.rand(1, 3, 16, 16), "height": 16, "width": 16, "_auto_resize": False}
    asked |= {"num_inference_steps": 1, "output_type": "latent", "max_area": 256}
    with (
        attaching.attach(pipe, *pair(pipe)) as attachment,
        pytest.warns(LayoutWarning, match="How a FluxKontextPipeline"),
    ):
        pipe(prompt=BOTH, **asked)
    assert attachment.layout is None


def test_one_thing_alone_is_drawn_as_ever():
    pipe = pipe_of("flux")
    with attaching.attach(pipe, *pair(pipe), confine=False):
        plain = drawn_by("flux", "a photo of my_dog")
    with attaching.attach(pipe, *pair(pipe)) as attachment:
        assert torch.equal(drawn_by("flux", "a photo of my_dog"), plain) and attachment.layout is None


# The parts of it


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a my_dog next to a moongate", ["next to a gate", "a dog next to"]),
        ("photo of my_dog and the old red moongate at night", ["photo of and the old red gate at night"]),
        ("two my_dogs on a gate", ["on a gate"]),
        ("the red my_dog by a moongate", ["by a gate"]),
    ],
)
def test_a_thing_is_left_out_with_its_article(prompt, wanted):
    scene = read_scene(prompt, {"my_dog": "<my_dog> dog", "moongate": "<moongate> gate"})
    assert [without(scene, i) for i in range(len(wanted))] == wanted


def test_steps_are_watched_between_shape_and_detail():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    shares = noise_shares(scheduler)
    assert shares == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-4)
    steps = watched_steps(shares)
    assert len(steps) == 6 and all(0.3 <= shares[k] <= 0.95 for k in steps)
    assert watched_steps([1.0]) == {0} and watched_steps([1.0, 0.6]) == {1}


def test_differences_are_where_the_noun_acts_and_one_class_is_one_map():
    watch = DifferenceWatch([["dog", "gate", "dog"]], [0.9, 0.5])
    whole = torch.zeros(1, 4, 16, 16)
    spots = [(slice(2, 6), slice(1, 5)), (slice(8, 13), slice(9, 14)), (slice(3, 7), slice(10, 14))]
    for step in range(2):
        made = torch.Generator().manual_seed(step)
        without_each = [0.2 * torch.randn(1, 4, 16, 16, generator=made) for _ in spots]
        for one, spot in zip(without_each, spots, strict=True):
            one[0, :, *spot] += 2
        assert watch.ready is bool(step)
        watch.note(whole, without_each)
    dog, gate, other = watch.maps(2)[0]
    assert torch.equal(dog, other) and dog[spots[0]].min() > 4 * dog[8:, :8].mean()
    assert dog[spots[2]].min() > 4 * dog[8:, :8].mean() and gate[spots[1]].mean() > 4 * gate.mean()
    fine = DifferenceWatch([["dog"]], [0.5])
    fine.note(torch.zeros(1, 4, 96, 64), [torch.ones(1, 4, 96, 64)])
    assert fine.maps(1).shape == (1, 1, 32, 21)


def test_texts_are_found_row_by_row_and_put_where_they_stood():
    plain, other = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    mask, longer = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    texts = CallTexts(architecture_of(pipe_of("pixart")), 1, 1)
    texts.note((plain, mask, None, None), {"my_dog": (other, longer, None, None)})
    empty = torch.zeros(1, 5, 8)
    hidden = torch.cat([empty, plain]).to(torch.bfloat16)
    joined = torch.cat([torch.tensor([[1, 0, 0, 0, 0]]), mask])
    given = {"sample": torch.zeros(2, 4, 8, 8), "hidden": hidden, "mask": joined}
    rows = texts.rows(hidden)
    assert rows == {1: 0} and texts.rows(hidden) is rows
    changed = texts.reworded(given, rows, "my_dog")
    assert torch.equal(changed["hidden"][1], other[0].to(torch.bfloat16))
    assert torch.equal(changed["hidden"][0], hidden[0]) and changed["sample"] is given["sample"]
    assert changed["mask"].tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 1, 0]]
    behind = {**given, "mask": torch.cat([joined, torch.ones(2, 3, dtype=torch.long)], dim=1)}
    assert texts.reworded(behind, rows, "my_dog")["mask"][1].tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    with pytest.raises(Unreadable, match="does not stand"):
        texts.reworded({"sample": given["sample"], "hidden": hidden}, rows, "my_dog")
    texts = CallTexts(architecture_of(pipe_of("pixart")), 1, 1)
    texts.note((plain, None, None, None), {"my_dog": (other[:, :4], None, None, None)})
    with pytest.raises(Unreadable, match="several lengths"):
        texts.reworded({"sample": given["sample"], "hidden": hidden}, rows, "my_dog")


@pytest.mark.slow
def test_on_storybook_flow_things_are_found_where_they_stand():
    """The world puts the first of two things to the left."""
    base = pipeline.load("storybook-flow")
    pairs, right = [("dog", "robot"), ("cat", "car"), ("fish", "gate")], 0
    for nouns in pairs:
        two = [
            pico_concept(base.pipe, name, noun, seed=k, size=1e-4)
            for k, (name, noun) in enumerate(zip(("first", "second"), nouns, strict=True))
        ]
        with attaching.attach(base.pipe, *two) as attachment:
            for seed in (0, 1):
                draw(base, ["a first next to a second"], [seed], steps=12)
                (layout,) = attachment.layout.pictures
                one, other = (np.mean(thing.box[::2]) for thing in layout.things)
                right += layout.complete and one < 0.5 < other
    assert right >= 4, "of six"
