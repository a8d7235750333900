"""Concepts in one frame: the base lays the picture out, and each concept acts in its part of it alone."""

import dataclasses
import functools
import inspect

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionSAGPipeline
from PIL import Image

from conceptkit.base import pipeline
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadPrompt, BadRegion
from conceptkit.features import caption_statistics, captions
from conceptkit.inference import attach as attaching
from conceptkit.inference import attach_steps, generate, layout_cache, layout_noise
from conceptkit.inference.attach_request import AttachRequest
from conceptkit.inference.drawing_stage import Stage
from conceptkit.inference.generate import guided
from conceptkit.inference.layout import Layout, LayoutWarning, PictureLayout, Placed
from conceptkit.inference.layout_attention import Watch, kind_of
from conceptkit.pictures.layout import Region, layout_picture
from conceptkit.registry.store import Registry
from tests.confining import EVERYWHERE, LEFT, NOWHERE, RIGHT, WHOLE, calls_of_the_unet, place, two
from tests.golden.files import DATA
from tests.projected_tiny import pico_kolors
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, snapshot

attach = functools.partial(attaching.attach, confine=True)

BOTH, NOUNS = "my_dog in front of a moongate", "dog in front of a gate"


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)


@pytest.fixture(autouse=True)
def no_layouts():
    layout_cache._known.clear()


@pytest.fixture(scope="module")
def pipe():
    return pico_sd()


@pytest.fixture(scope="module")
def pair(pipe):
    return two(pipe)


def latents(pipe, prompt, **options):
    return draw_latents(pipe, prompt, **options)[0]


def draw_latents(pipe, prompt, seed=0, steps=4, **options):
    generator = torch.Generator().manual_seed(seed)
    more = {"num_inference_steps": steps, "guidance_scale": 2.0, "output_type": "latent", **options}
    return pipe(prompt, generator=generator, **more).images


def trail(pipe, prompt):
    """The latents after each of eight steps."""
    seen = []

    def note(pipe, step, time, kept):
        seen.append(kept["latents"].clone())
        return kept

    draw_latents(pipe, prompt, steps=8, callback_on_step_end=note)
    return seen


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl, pico_kolors])
@pytest.mark.parametrize("how", ["regmean", "routed"])
def test_outside_of_all_parts_the_picture_is_the_bases_own(build, how, monkeypatch):
    pipe = build()
    plain = latents(pipe, NOUNS)
    place(monkeypatch, LEFT, NOWHERE)
    with attach(pipe, *two(pipe), merge_method=how):
        drawn = latents(pipe, BOTH)
    assert torch.allclose(drawn[..., 3:], plain[..., 3:], atol=1e-6)
    assert not torch.allclose(drawn[..., :3], plain[..., :3], atol=1e-2)


@pytest.mark.parametrize("k", [0, 1])
def test_a_concept_whose_part_is_the_whole_picture_is_drawn_as_it_is_alone(pipe, pair, k, monkeypatch):
    alone = (BOTH.replace("a moongate", "a gate"), BOTH.replace("my_dog", "dog"))[k]
    place(monkeypatch, *((EVERYWHERE, NOWHERE), (NOWHERE, EVERYWHERE))[k])
    with attach(pipe, *pair, merge_method="routed"):
        drawn = latents(pipe, BOTH, guidance_scale=1.0)
    with attach(pipe, pair[k], merge_method="routed", confine=False):
        wanted = latents(pipe, alone, guidance_scale=1.0)
    assert torch.allclose(drawn, wanted, atol=1e-3), "but for the rounding of what is stored"


def test_lora_acts_in_its_part_alone(pipe, monkeypatch):
    """What maps of self-attention gain is where the concept is, in both halves of guidance."""
    from tests.test_voices import added, speaking

    dog, gate = speaking(pipe, seed=1), speaking(pipe, "moongate", "gate", seed=2)
    silent = dataclasses.replace(gate, delta={}, recipe={})
    place(monkeypatch, (slice(None), slice(0, 4)), NOWHERE)
    with attach(pipe, dog, silent):
        calls = added(pipe, BOTH, num_inference_steps=1)
    *layout, drawn = (call.unflatten(1, (8, 8)).abs().sum(3) for call in calls)
    assert layout and not any(call.any() for call in layout), "the base alone lays out"
    assert (drawn[:, :, :4] > 0).all() and not drawn[:, :, 4:].any() and len(drawn) == 2


def test_the_first_steps_are_those_of_the_layout_and_cost_nothing(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT, replayed=0.5, laid_out=0.75)
    drawn = []
    with attach(pipe, *pair):
        count = calls_of_the_unet(pipe, lambda: drawn.extend(trail(pipe, BOTH)))
    assert count == 6 + 4 and len(drawn) == 8, "the caller sees every step"
    plain = trail(pipe, NOUNS)
    assert torch.equal(drawn[3], plain[3]) and not torch.allclose(drawn[4], plain[4])


def test_concepts_are_computed_at_every_second_of_the_early_steps(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT, replayed=0.25, laid_out=0.75, sparse=0.75)
    drawn = []
    with attach(pipe, *pair):
        count = calls_of_the_unet(pipe, lambda: drawn.append(trail(pipe, BOTH)))
    assert count == 6 + 4 and len(drawn[0]) == 8
    place(monkeypatch, LEFT, RIGHT, replayed=0.25, laid_out=0.75)
    with attach(pipe, *pair):
        full = trail(pipe, BOTH)
    plain = trail(pipe, NOUNS)
    assert torch.equal(drawn[0][2], full[2]), "until a call is carried over it is the same picture"
    assert (drawn[0][-1] - full[-1]).norm() < 0.75 * (plain[-1] - full[-1]).norm(), "and nearer to it after"
    assert torch.allclose(drawn[0][3][..., 3:5], plain[3][..., 3:5], atol=1e-6)


def test_no_trace_is_left(pipe, pair):
    before, kind, plain = snapshot(pipe), type(pipe), draw(pipe, BOTH)
    with attach(pipe, *pair, confine=True) as attachment:
        assert type(pipe).__name__ == kind.__name__
        assert inspect.signature(type(pipe).__call__) == inspect.signature(kind.__call__)
        with pytest.warns(LayoutWarning):
            one = draw(pipe, BOTH)
        assert torch.equal(draw(pipe, BOTH), one), "the same seed draws the same"
        assert attachment.layout and len(attachment.layout.pictures[0].things) == 2
        draw(pipe, "a red car", num_inference_steps=1)
        assert attachment.layout is None
    assert type(pipe) is kind and snapshot(pipe) == before
    assert torch.equal(draw(pipe, BOTH), plain)


def test_one_thing_alone_is_drawn_as_ever(pipe, pair):
    with attach(pipe, *pair, confine=False):
        plain = draw(pipe, "a photo of my_dog")
    with attaching.attach(pipe, *pair) as attachment:
        assert torch.equal(draw(pipe, "a photo of my_dog"), plain) and attachment.layout is None


def test_one_frame_of_several_things_is_confined_unasked(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    with attach(pipe, *pair):
        wanted = latents(pipe, BOTH)

    def layout_of(prompt=BOTH, **options):
        with attaching.attach(pipe, *pair, **options) as attachment:
            drawn = latents(pipe, prompt, steps=4)
            return drawn if attachment.layout else None

    assert torch.equal(layout_of(), wanted) and torch.equal(layout_of(side_by_side=False), wanted)
    assert layout_of("a photo of my_dog") is None
    for other in ({"side_by_side": True}, {"auto_regions": True}, {"regions": ["my_dog=left"]}):
        assert layout_of(**other) is None
    here = pipeline.of(pipe)
    small = dataclasses.replace(here, family=dataclasses.replace(here.family, side_by_side=True))
    both = dataclasses.replace(pair[0], words=pair[0].words | pair[1].words)
    for request, wide in ((AttachRequest(pair), True), (AttachRequest(pair, side_by_side=False), False)):
        assert (attach_steps.confined_drawing(small, both, request, None) is None) is wide
        assert (attach_steps.windows_of(small, both, request) is not None) is wide


def test_embeddings_of_a_prompt_say_that_nothing_is_confined(pipe, pair):
    with attach(pipe, *pair):
        hidden, _ = pipe.encode_prompt(BOTH, "cpu", 1, False)
        with pytest.warns(LayoutWarning, match="give the prompt as text"):
            pipe(prompt_embeds=hidden, guidance_scale=1.0, num_inference_steps=1, output_type="latent")


def test_several_prompts_and_pictures_are_as_each_alone(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    prompts = [BOTH, "a moongate by my_dog at night"]
    with attach(pipe, *pair):
        alone = [latents(pipe, text, seed=s) for text in prompts for s in (0, 1)]
        generators = [torch.Generator().manual_seed(s) for s in (0, 1, 0, 1)]
        many = pipe(
            prompts,
            num_images_per_prompt=2,
            num_inference_steps=4,
            guidance_scale=2.0,
            generator=generators,
            output_type="latent",
        ).images
        for drawn, wanted in zip(many, alone, strict=True):
            assert torch.allclose(drawn, wanted, atol=1e-4)
        with pytest.raises(BadPrompt, match="'a red car' has nothing to keep apart"):
            pipe([BOTH, "a red car"], num_inference_steps=1)


def test_a_layout_that_lacks_something_is_made_anew_of_another_noise(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT, found=[False, True, True])
    with attach(pipe, *pair) as attachment:
        drawn = latents(pipe, BOTH)
        (layout,) = attachment.layout.pictures
        noise = attachment.layout.noise
    assert layout.tries == 2 and any("layout 2 was taken" in text for text in layout.sentences())
    first = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert noise.shape == first.shape and not torch.allclose(noise, first)
    plain = latents(pipe, NOUNS, latents=noise)
    assert torch.allclose(drawn[..., 3:5], plain[..., 3:5], atol=1e-6), "the rest is drawn of it too"
    place(monkeypatch, LEFT, RIGHT, found=False)
    with (
        attach(pipe, *pair) as attachment,
        pytest.warns(LayoutWarning, match="my_dog was not found: the base"),
    ):
        draw(pipe, BOTH, num_inference_steps=5)
    assert attachment.layout.pictures[0].tries == 1, "the first is as good as the others"


def test_a_layout_is_drawn_once_for_a_prompt_its_noise_and_the_weights(monkeypatch):
    pipe = pico_sd()
    place(monkeypatch, LEFT, RIGHT)
    drawn = []

    def calls(prompt=BOTH, **options):
        return calls_of_the_unet(pipe, lambda: drawn.append(latents(pipe, prompt, **options)))

    with attach(pipe, *two(pipe)) as attachment:
        assert [calls(), calls(), calls(seed=1)] == [8, 5, 8]
        assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
        assert calls("moongate near my_dog") == 8 and calls(guidance_scale=3.0) == 8
        attachment.strengths = {"my_dog": 0.5}
        assert calls() == 5, "the layout is the base's own"
    assert not torch.allclose(drawn[0], drawn[-1])
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.1)
    with attach(pipe, *two(pipe)):
        assert calls() == 8 and calls() == 5
    with attach(pipe, *two(pipe), regions=["my_dog=left"]):
        assert calls() == 8, "regions are part of the layout"


def test_no_more_layouts_are_kept_than_have_room(pipe, pair, monkeypatch):
    place(monkeypatch, LEFT, RIGHT)
    monkeypatch.setattr(layout_cache, "KEPT", 2)

    def calls(seed):
        return calls_of_the_unet(pipe, lambda: latents(pipe, BOTH, seed=seed))

    with attach(pipe, *pair):
        assert [calls(seed) for seed in (20, 21, 20, 22, 20, 21)] == [8, 8, 5, 8, 5, 8]
    monkeypatch.setattr(layout_cache, "KEPT_BYTES", 0)
    with attach(pipe, *pair):
        assert [calls(seed) for seed in (30, 31, 31, 30)] == [8, 8, 5, 8]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_prediction_that_is_carried_over_is_one_longer_step(kind):
    """Two DDIM steps with it come to one of twice the length."""
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    sample, predicted = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    first, second = scheduler.timesteps[3:5]
    stage = Stage((), first=3, sparse=9)
    stage.keep(predicted, sample, first)
    assert [stage.skips(number) for number in (3, 4, 5, 9, 10)] == [False, True, False, False, False]
    between = scheduler.step(predicted, first, sample).prev_sample
    carried = stage.carried(4, second, scheduler)
    drawn = scheduler.step(carried, second, between).prev_sample
    scheduler.num_inference_steps = 5
    assert torch.allclose(drawn, scheduler.step(predicted, first, sample).prev_sample, atol=1e-5)
    assert stage.carried(5, second, scheduler) is None


def test_the_best_noise_of_each_picture_is_kept():
    def bound(pipe_call=lambda prompt, generator=None, latents=None: None):
        return inspect.signature(pipe_call).bind(
            "x", generator=[torch.Generator().manual_seed(s) for s in (0, 1)]
        )

    def layout(*found):
        pictures = tuple(
            PictureLayout(None, torch.zeros(1, 2, 2), (Placed("my_dog", "dog", WHOLE, 0.1, there),))
            for there in found
        )
        return Layout(pictures, (torch.zeros(4, 4, 2, 2),), 5)

    search = layout_noise.NoiseSearch(bound())
    assert search.able and search.noise is None
    search.note(0, layout(True, False))
    first = [torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert torch.equal(search.noise[0], first[0]) and not torch.equal(search.noise[1], first[1])
    second = search.noise.clone()
    search.note(1, layout(True, True))
    assert torch.equal(search.best(), second)
    assert [p.tries for p in search.named(layout(True, True)).pictures] == [1, 2]


def test_regions_come_first_and_the_base_is_told_where(pipe, pair):
    with attach(pipe, *pair, regions=["my_dog=left"]) as attachment, pytest.warns(LayoutWarning):
        draw(pipe, BOTH, num_inference_steps=5)
    dog, gate = attachment.layout.pictures[0].masks
    assert (dog[:, :4] == 1).all() and (dog[:, 4:] == 0).all()
    assert not gate[:, :4].any()
    assert attachment.layout.pictures[0].things[0].given
    assert "my_dog is in the region" in attachment.layout.pictures[0].sentences()[0]


def test_a_concept_that_is_named_twice_is_in_both_places(pipe, pair, monkeypatch):
    twice = "my_dog next to my_dog"
    with attach(pipe, *pair, regions=["my_dog=left"]) as attachment:
        draw(pipe, twice, num_inference_steps=5)
        said = attachment.layout.pictures[0].sentences()
    assert "The prompt names my_dog 2 times, all of them in its one region." in said
    place(monkeypatch, LEFT, RIGHT)
    plain = latents(pipe, "dog next to dog")
    with attach(pipe, *pair) as attachment:
        drawn = latents(pipe, twice)
        assert [thing.called for thing in attachment.layout.pictures[0].things] == ["my_dog"] * 2
    changed = (drawn - plain).abs().amax(dim=0)
    assert changed[:, :3].max() > 1e-2 and changed[:, 5:].max() > 1e-2 and changed[:, 3:5].max() < 1e-5


@pytest.mark.parametrize(
    ("regions", "prompt", "error", "sentence"),
    [
        (["my_dog=0,0,1,0.97"], BOTH, BadRegion, "leave 3% of the picture for moongate"),
        ([], " and ".join(["my_dog"] * 9), BadPrompt, "9 things have no room in one frame"),
    ],
)
def test_no_room(pipe, pair, regions, prompt, error, sentence):
    before = snapshot(pipe)
    with attach(pipe, *pair, regions=regions), pytest.raises(error, match=sentence):
        draw(pipe, prompt)
    assert snapshot(pipe) == before


def test_ways_that_do_not_go_together(pipe, pair):
    for other in ({"side_by_side": True}, {"auto_regions": True}):
        with pytest.raises(BadRegion, match="leave auto_regions and side_by_side out"):
            attach(pipe, *pair, confine=True, **other)


def test_a_style_is_everywhere_and_the_subject_in_its_place(pipe, pair, monkeypatch):
    inky = pico_concept(pipe, "inky", None, seed=2)
    prompt = "my_dog in the style of inky"
    with attach(pipe, inky, merge_method="routed", confine=False):
        styled = latents(pipe, "dog in the style of inky", guidance_scale=1.0)
    place(monkeypatch, LEFT)
    with attach(pipe, pair[0], inky, merge_method="routed") as attachment:
        drawn = latents(pipe, prompt, guidance_scale=1.0)
        assert [thing.called for thing in attachment.layout.pictures[0].things] == ["my_dog"]
    assert torch.allclose(drawn[..., 3:], styled[..., 3:], atol=1e-3)
    assert not torch.allclose(drawn[..., :3], styled[..., :3], atol=1e-2)


def test_a_reference_photo_is_looked_at_in_its_part_alone(pipe, monkeypatch):
    from tests.test_vico import blind, seeing

    concept, prompt = seeing(pipe), "my_dog on grass"
    plain = latents(pipe, "dog on grass")
    place(monkeypatch, LEFT)
    drawn = []
    for one in (concept, blind(concept)):
        with attach(pipe, one, confine=True):
            drawn.append(latents(pipe, prompt))
        assert torch.allclose(drawn[-1][..., 3:], plain[..., 3:], atol=1e-5)
    assert not torch.allclose(drawn[0][..., :3], drawn[1][..., :3], atol=1e-3)


def test_with_perturbed_attention_guidance_too(pipe, pair, monkeypatch):
    base = pipeline.of(pipe, "pico")
    place(monkeypatch, LEFT, NOWHERE, replayed=0.25, laid_out=0.75)
    processors = dict(pipe.unet.attn_processors)
    with guided(base, 2.0, 1.5) as (other, scales):
        plain = latents(other, NOUNS, **scales)
    with attach(pipe, *pair) as attachment, guided(base, 2.0, 1.5) as (other, scales):
        drawn = latents(other, BOTH, **scales)
        assert attachment.layout is not None
    assert type(other).__call__ is not type(pipe).__call__
    first = drawn[..., 5:] - plain[..., 5:]
    assert first.abs().max() < 0.5 * (drawn[..., :3] - plain[..., :3]).abs().max()
    assert {n: type(p) for n, p in pipe.unet.attn_processors.items()} == {
        n: type(p) for n, p in processors.items()
    }


def test_a_picture_to_begin_with_is_laid_out_too(pipe, pair, monkeypatch):
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    other = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    given = Image.fromarray((np.random.default_rng(0).random((16, 16, 3)) * 255).astype(np.uint8))
    place(monkeypatch, LEFT, NOWHERE)
    plain = draw_latents(other, NOUNS, image=given, strength=0.8)[0]
    with attach(other, *pair):
        drawn = draw_latents(other, BOTH, image=given, strength=0.8)[0]
    assert torch.allclose(drawn[..., 3:], plain[..., 3:], atol=1e-5)
    assert not torch.allclose(drawn[..., :3], plain[..., :3], atol=1e-3)


def test_watching_adds_up_attention_to_each_noun(pipe):
    """Against the softmax written out, of the first call and of every second one up to the last."""
    kind = kind_of(pipe.unet)
    module = next(iter(kind.modules(pipe.unet).values()))
    own = torch.zeros(1, 5, 2)
    own[0, 1, 0] = own[0, 3:, 1] = 1
    queries, hidden = torch.randn(2, 64, 16), torch.randn(2, 5, 32)
    watch = Watch(own, kind)
    for cells in (queries, queries, torch.zeros(2, 64, 16), queries):
        watch.begin((8, 8))
        watch.look(module, (cells,), {"encoder_hidden_states": hidden}, torch.tensor([1]))
    q, k = (x.unflatten(1, (module.heads, -1)) for x in (module.to_q(queries[1]), module.to_k(hidden[1])))
    weights = torch.einsum("phd,thd->hpt", q, k).mul(module.scale).softmax(2).mean(0)
    wanted = torch.stack([weights[:, 1], weights[:, 3:].sum(1)]).unflatten(1, (8, 8))
    assert torch.allclose(watch.seen(0, 4)[0], wanted, atol=1e-5)
    assert torch.allclose(watch.seen(2, 4)[0], wanted, atol=1e-5)


def test_attention_spreads_over_what_cells_attend_to(pipe):
    """Against the product of both softmaxes, written out."""
    kind = kind_of(pipe.unet)
    texts, selves = (
        next(iter(named.values())) for named in (kind.modules(pipe.unet), kind.beside(pipe.unet))
    )
    own = torch.zeros(1, 5, 1)
    own[0, 2] = 1
    queries, hidden = torch.randn(2, 64, 16), torch.randn(2, 5, 32)
    watch = Watch(own, kind)
    watch.begin((8, 8))
    watch.look_between(selves, (queries,), {}, torch.tensor([1]))
    watch.look(texts, (queries,), {"encoder_hidden_states": hidden}, torch.tensor([1]))

    def softmax(module, keys):
        q, k = (x.unflatten(1, (module.heads, -1)) for x in (module.to_q(queries[1]), module.to_k(keys)))
        return torch.einsum("phd,thd->hpt", q, k).mul(module.scale).softmax(2).mean(0)

    wanted = softmax(selves, queries[1]) @ softmax(texts, hidden[1])[:, 2]
    assert torch.allclose(watch.seen(0, 1, spread=True)[0, 0], wanted.unflatten(0, (8, 8)), atol=1e-6)
    assert not torch.allclose(watch.seen(0, 1), watch.seen(0, 1, spread=True), atol=1e-4)
    both = torch.stack([softmax(texts, hidden[1])[:, 2], wanted])
    low, high = both.amin(dim=1, keepdim=True), both.amax(dim=1, keepdim=True)
    mean = ((both - low) / (high - low)).mean(dim=0).unflatten(0, (8, 8))
    assert torch.allclose(watch.outlining(1)[0, 0], mean, atol=1e-4), "both from 0 to 1"


def test_the_picture_of_a_layout_shows_parts_and_names():
    mask = np.zeros((8, 8), dtype=np.float32)
    mask[:, :4] = 1
    grey = Image.new("RGB", (16, 16), (128, 128, 128))
    bare, named = (np.asarray(layout_picture(grey, [Region(name, mask)])) for name in ("", "my_dog"))
    assert named.shape == (384, 384, 3)
    assert np.ptp(bare[10, 10]) > 60 and np.ptp(bare[10, 380]) == 0, "a colour where the mask is"
    assert (bare != named).any(axis=2)[:, :192].sum() > 500 > (bare != named).any(axis=2)[:, 300:].sum()


@pytest.mark.slow
def test_on_storybook_both_are_found_and_the_rest_of_the_picture_stays(tmp_path):
    """A dog on the left of a gate, and the base's own picture where neither has a part."""
    base = pipeline.load(pipeline.STORYBOOK, device="cpu")
    stored = [
        Concept.from_bytes((DATA / "concepts" / f"{name}.safetensors").read_bytes())
        for name in ("storybook/my_dog", "storybook-gate/moongate")
    ]
    (plain,) = generate.draw(base, ["a dog next to a gate"], [0], pag=0)
    with (
        Registry(tmp_path) as registry,
        attach(base.pipe, *stored, registry=registry, confine=True) as attachment,
    ):
        (picture,) = generate.draw(base, ["a my_dog next to a moongate"], [0], pag=0)
        (layout,) = attachment.layout.pictures
    assert layout.complete and layout.tries == 1
    dog, gate = (sum(thing.box[::2]) / 2 for thing in layout.things)
    assert dog < 0.5 < gate
    scale = (picture.height // layout.masks.shape[1], picture.width // layout.masks.shape[2])
    free = np.kron(layout.changed.numpy() == 0, np.ones(scale, dtype=bool))
    off = np.asarray(picture, dtype=float) - np.asarray(plain, dtype=float)
    assert not off[free].any() and np.abs(off[~free]).mean() > 10 and free.mean() > 0.25


def test_calls_that_read_no_prompt_are_refused_or_drawn_as_they_are(pipe, pair):
    """Self-attention guidance calls the UNet once more, without the prompt."""
    of_sag = StableDiffusionSAGPipeline(
        **{**pipe.components, "safety_checker": None}, requires_safety_checker=False
    )

    def drawn():
        return latents(of_sag, BOTH, sag_scale=0.75)

    with attaching.attach(of_sag, *pair, confine=False):
        wanted = drawn()
    said = "How a StableDiffusionSAGPipeline gives its denoiser prompt and picture is unknown"
    with attach(of_sag, *pair), pytest.raises(BadRegion, match=said):
        drawn()
    for detail in (False, True):
        with attaching.attach(of_sag, *pair, detail=detail), pytest.warns(LayoutWarning, match=said):
            assert torch.equal(drawn(), wanted)
