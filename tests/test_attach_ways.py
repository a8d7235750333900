"""Routed concepts, concepts with regions, swapping: what the UNet computes, and no trace afterwards."""

import dataclasses
import functools
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from conceptkit.base import pipeline
from conceptkit.base.attention import kv_maps
from conceptkit.concepts.delta import Factors
from conceptkit.errors import BadRegion, BaseMismatch, ConceptError, UnknownConcept
from conceptkit.inference import attach as attaching
from conceptkit.inference import regions
from conceptkit.inference.attention_masks import level, winners
from conceptkit.inference.token_owners import END, OTHER, TokenOwners
from conceptkit.merging.compose import compose
from conceptkit.merging.method_table import MERGE_METHODS as WAYS
from conceptkit.registry.store import Registry
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, snapshot

attach = functools.partial(attaching.attach, confine=False)

BOTH = "my_dog in front of a moongate"
MERGING = [how for how in WAYS if how != "joint"]


pytestmark = pytest.mark.usefixtures("few_captions")


@pytest.fixture(scope="module")
def pipe():
    return pico_sd()


@pytest.fixture(scope="module")
def pair(pipe):
    return pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1, rank=3)


@pytest.fixture(scope="module")
def before(pipe):
    return snapshot(pipe)


@pytest.mark.parametrize("how", MERGING)
def test_every_way_draws_and_leaves_no_trace(pipe, pair, before, how):
    plain = draw(pipe, BOTH)
    with attach(pipe, *pair, merge_method=how, weights=[0.8, 1.2]) as attachment:
        assert attachment.report.merge_method == how
        assert not torch.equal(draw(pipe, BOTH), plain)
    assert snapshot(pipe) == before


def values(pipe, name: str, prompt: str, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """What one map reads and gives in the first call of the UNet: (B, T, d), (B, T, o)."""
    seen = []
    module = dict(pipe.unet.named_modules())[name]
    hook = module.register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    try:
        draw(pipe, prompt, num_inference_steps=1, **options)
    finally:
        hook.remove()
    return seen[0]


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
@pytest.mark.parametrize("shared", ["average", "sum", "drop"])
def test_a_routed_token_reads_its_own_concept(build, shared):
    pipe = build()
    first, second = pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1, vectors=2)
    name, linear = next(iter(kv_maps(pipe.unet).items()))
    with attach(pipe, first, second, merge_method="routed", padding_delta=shared) as attachment:
        parts = attachment.concept
        x, y = values(pipe, name, BOTH, negative_prompt="a moongate")
        ids = pipe.tokenizer("<my_dog> dog in front of a <moongate> <moongate>_1 gate").input_ids
    added = (y - (x @ linear.weight.T)).detach()
    rank = parts.recipe["ranks"][0]
    up, down = parts.delta[name]
    dog = Factors(up[:, :rank], down[:rank]).apply(x)
    gate = Factors(up[:, rank:], down[rank:]).apply(x)
    end = len(ids) - 1
    share = {"average": (dog + gate) / 2, "sum": dog + gate, "drop": 0 * dog}[shared]
    expected = torch.zeros_like(added)
    # The second half of the batch is the prompt: BOS <my_dog> dog in front of a <moongate> x2 gate, the rest.
    expected[1, 1:3], expected[1, 7:10], expected[1, end:] = dog[1, 1:3], gate[1, 7:10], share[1, end:]
    # The first is the negative prompt: BOS a <moongate> x2 gate, the rest.
    expected[0, 2:5] = gate[0, 2:5]
    expected[0, 5:] = 0 if shared == "drop" else gate[0, 5:]
    assert torch.allclose(added, expected, atol=1e-5)


def test_routing_leaves_prompts_without_concepts_alone(pipe, pair):
    plain = draw(pipe, "a photo of a dog")
    with attach(pipe, *pair, merge_method="routed"), pytest.warns(UserWarning, match="mentions none"):
        assert torch.equal(draw(pipe, "a photo of a dog"), plain)


def test_routing_knows_several_pictures_and_prompts_and_refuses_unknown_features(pipe, pair):
    prompts = ["my_dog", "a moongate at night"]
    with attach(pipe, *pair, merge_method="routed"):
        alone = [draw(pipe, text) for text in prompts]
        generators = [torch.Generator().manual_seed(0) for _ in range(4)]
        many = pipe(
            prompts,
            num_images_per_prompt=2,
            num_inference_steps=2,
            guidance_scale=2.0,
            generator=generators,
            output_type="np",
        ).images
        for picture, wanted in zip(many[::2], alone, strict=True):
            assert np.allclose(picture.transpose(2, 0, 1), wanted, atol=1e-4)
        foreign = torch.randn(1, 77, 32)
        with pytest.raises(ConceptError, match="encode the prompt again"):
            pipe(prompt_embeds=foreign, negative_prompt_embeds=foreign, num_inference_steps=1)


def test_a_stored_routed_merge_routes_again(pipe, pair, before):
    registry = Registry()
    merge = compose(
        *pair, base=pipeline.of(pipe, "pico"), registry=registry, merge_method="routed", name="both"
    )
    assert merge.report.captions == 0 and merge.report.kept[0].words == 1
    registry.add("both", merge.concept.to_bytes(), merge.concept.summary())
    with attach(pipe, merge):
        wanted = draw(pipe, BOTH)
    with attach(pipe, "both", registry=registry):
        assert torch.equal(draw(pipe, BOTH), wanted)
    with pytest.raises(ConceptError, match="both is routed and cannot be merged further"):
        compose(merge, pico_concept(pipe, "teapot", "teapot"), base=pipeline.of(pipe, "pico"))
    assert snapshot(pipe) == before


def test_routing_onto_other_maps_is_refused(pipe, pair):
    concept = compose(*pair, base=pipeline.of(pipe, "pico"), merge_method="routed").concept
    broken = {name: (up[:-1], down) for name, (up, down) in concept.delta.items()}
    with pytest.raises(BaseMismatch, match="does not fit this UNet"):
        attach(pipe, dataclasses.replace(concept, delta=broken))


# regions


def test_regions_are_read():
    found = regions.parse_regions(["my_dog=left", "moongate=0.5,0,1,0.5"])
    assert found["my_dog"].mean() == 0.5 and found["my_dog"][:, :120].all()
    assert found["moongate"].mean() == 0.25 and found["moongate"][:120, 120:].all()
    thirds = [regions.mask("x", place) for place in ("left-third", "middle-third", "right-third")]
    assert (sum(cells.astype(int) for cells in thirds) == 1).all()


def test_a_mask_file_is_a_region(tmp_path):
    Image.fromarray(np.eye(2, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    found = regions.parse_regions([f"my_dog={tmp_path / 'mask.png'}"])["my_dog"]
    assert found.mean() == 0.5 and found[0, 0] and not found[0, -1]


@pytest.mark.parametrize(
    ("orders", "sentence"),
    [
        (["my_dog"], "no region"),
        (["my_dog=sideways"], "'sideways' is no region for my_dog"),
        (["my_dog=0,0,1"], "no box"),
        (["my_dog=0,0,nan,1"], "no box"),
        (["my_dog=0,0,1.2,1"], "leaves the picture"),
        (["my_dog=-0.1,0,1,1"], "leaves the picture"),
        (["my_dog=0.5,0,0.5,1"], "empty"),
        (["my_dog=0,0,0.001,1"], "empty"),
        (["my_dog=left", "my_dog=right"], "two regions"),
        (["my_dog=left", "moongate=0.4,0,1,1"], "share 10.0% of the picture"),
        (["my_dog=nowhere.png"], "cannot be read as the mask"),
        (["my_dgo=left"], "did you mean my_dog"),
    ],
)
def test_a_wrong_region_is_one_sentence(orders, sentence):
    with pytest.raises(BadRegion, match=sentence):
        regions.parse_regions(orders, ["my_dog", "moongate"])


def test_outside_its_region_a_concept_is_not_seen(pipe, pair, before):
    """With the delta and token of my_dog changed, nothing changes where nobody may look at its words."""
    seen = []

    def look(module, args, kwargs):
        seen.append(kwargs["attention_mask"])

    attn = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2"))
    with attach(pipe, *pair, regions=["my_dog=left"]):
        handle = attn.register_forward_pre_hook(look, with_kwargs=True)
        inside = draw(pipe, BOTH, num_inference_steps=1)
        handle.remove()
    bias = seen[0].unflatten(1, level((8, 8), seen[0].shape[1]))
    words = torch.zeros(bias.shape[-1], dtype=torch.bool)
    words[1:3] = True
    half = bias.shape[2] // 2
    assert (bias[0] == 0).all(), "the negative prompt names nobody"
    assert (bias[1, :, :half] == 0).all() and (bias[1, :, :, ~words] == 0).all()
    assert (bias[1, :, half:][..., words] < -1e30).all()
    with attach(pipe, *pair):
        assert not torch.equal(draw(pipe, BOTH, num_inference_steps=1), inside)
    assert snapshot(pipe) == before
    with pytest.raises(BadRegion, match="no teapot in this picture"):
        attach(pipe, *pair, regions=["teapot=left"])
    with pytest.raises(BadRegion, match="choose one of them"):
        attach(pipe, *pair, regions=["my_dog=left"], auto_regions=True)
    assert snapshot(pipe) == before


def test_separating_lets_concepts_split_the_picture(pipe, pair, before):
    with attach(pipe, *pair):
        together, alone = draw(pipe, BOTH, num_inference_steps=8), draw(pipe, "my_dog", num_inference_steps=8)
        short = draw(pipe, BOTH, num_inference_steps=4)
    with attach(pipe, *pair, auto_regions=True):
        apart = draw(pipe, BOTH, num_inference_steps=8)
        assert not torch.equal(apart, together)
        assert torch.equal(draw(pipe, BOTH, num_inference_steps=8), apart), "one drawing forgets the other"
        assert torch.equal(draw(pipe, "my_dog", num_inference_steps=8), alone)
        assert torch.equal(draw(pipe, BOTH, num_inference_steps=4), short), "first it only watches"
    assert snapshot(pipe) == before


def test_winners_split_the_picture():
    seen = torch.zeros(2, 2, 4, 4)
    seen[:, 0, :, :2], seen[:, 1, :, 2:] = 5.0, 0.1  # faint attention counts by its own largest
    inside = winners(seen, torch.tensor([[True, True], [True, False]]))
    assert inside[0, 0].float().mean() == 0.5 and (inside[0, 0] ^ inside[0, 1]).all()
    assert inside[1].all()


def test_levels_of_odd_latents():
    assert level((9, 7), 5 * 4) == (5, 4)
    with pytest.raises(ConceptError, match="does not fit latents of 8x8"):
        level((8, 8), 5)


# swapping


def test_one_concept_is_swapped_and_the_others_stay(pipe, pair, before):
    cat = pico_concept(pipe, "my_cat", "cat", seed=5)
    with attach(pipe, *pair, weights=[1.0, 0.5]) as attachment:
        attachment.swap("my_dog", cat)
        assert set(attachment.concepts) == {"my_cat", "moongate"}
        swapped = draw(pipe, "my_cat in front of a moongate")
        with pytest.raises(UnknownConcept, match="no my_dog to swap; attached are my_cat, moongate"):
            attachment.swap("my_dog", pair[0])
        with pytest.raises(ConceptError, match="named twice|both answer"):
            attachment.swap("my_cat", pair[1])
        assert torch.equal(draw(pipe, "my_cat in front of a moongate"), swapped)
        attachment.swap("my_cat", pair[0])
        back = draw(pipe, BOTH)
    assert snapshot(pipe) == before
    with pytest.raises(ConceptError, match="no longer on the pipeline"):
        attachment.swap("moongate", cat)
    with attach(pipe, *pair, weights=[1.0, 0.5]):
        assert torch.equal(draw(pipe, BOTH), back)
    with attach(pipe, cat, pair[1], weights=[1.0, 0.5]):
        assert torch.equal(draw(pipe, "my_cat in front of a moongate"), swapped)


def test_a_merge_can_swap_one_of_its_parts_while_its_region_stays(pipe, pair):
    merge = compose(*pair, base=pipeline.of(pipe, "pico"), merge_method="routed")
    with attach(pipe, merge, regions=["my_dog=left"]) as attachment:
        attachment.swap("my_dog", pico_concept(pipe, "my_cat", "cat", seed=5))
        assert attachment.concept.recipe["method"] == "routed"
        draw(pipe, "my_cat in front of a moongate")


def test_a_merge_at_half_strength_is_at_half_strength_after_a_swap(pipe, pair):
    merge, cat = compose(*pair, base=pipeline.of(pipe, "pico")), pico_concept(pipe, "my_cat", "cat", seed=5)
    with attach(pipe, merge, weights=[0.5]) as attachment:
        attachment.swap("my_dog", cat)
        swapped = draw(pipe, "my_cat in front of a moongate")
    with attach(pipe, cat, pair[1], weights=[0.5, 0.5]):
        assert torch.allclose(draw(pipe, "my_cat in front of a moongate"), swapped, atol=1e-6)


def test_a_server_swaps_between_drawings(pipe, pair, before):
    """Two threads draw, one swaps: every picture is one that is also drawn in quiet."""
    cat = pico_concept(pipe, "my_cat", "cat", seed=5)
    prompt = "my_dog and my_cat by a moongate"
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    quiet = []
    for one in (pair[0], cat):
        with attach(pipe, one, pair[1]):
            quiet.append(draw(pipe, prompt).permute(1, 2, 0).numpy().tobytes())
    drawn: list[bytes] = []
    failures: list[BaseException] = []
    with attach(pipe, *pair) as attachment:

        def serve():
            try:
                for _ in range(4):
                    generator = torch.Generator().manual_seed(0)
                    drawn.append(attachment.draw(prompt, generator=generator, **options).images[0].tobytes())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=serve) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            attachment.swap("my_dog", cat)
            attachment.swap("my_cat", pair[0])
        for thread in threads:
            thread.join()
    assert not failures
    assert len(drawn) == 8 and set(drawn) <= set(quiet)
    assert snapshot(pipe) == before


def test_owners_of_positions(pipe, pair):
    with attach(pipe, *pair, merge_method="routed") as attachment:
        assert attachment.pipe.unet._forward_pre_hooks
        spelt = {"my_dog": ["<my_dog> dog", "<my_dog>"], "moongate": ["<moongate> gate", "<moongate>"]}
        (owners,) = TokenOwners(pipe, spelt).owners(["a <my_dog> by a <moongate> gate"])
    assert owners[:9].tolist() == [OTHER, OTHER, 0, OTHER, OTHER, 1, 1, END, END]


def test_another_thread_swaps_names_of_a_registry(pipe, pair):
    registry = Registry()
    for concept in (*pair, pico_concept(pipe, "my_cat", "cat", seed=5)):
        registry.add(concept.name, concept.to_bytes(), concept.summary())
    failures: list[BaseException] = []
    with attach(pipe, "my_dog:0.5", "moongate", registry=registry) as attachment:

        def swap():
            try:
                attachment.swap("my_dog", "my_cat:0.7")
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=swap)
        thread.start()
        thread.join()
        assert not failures
        assert set(attachment.concepts) == {"my_cat", "moongate"}
        assert attachment.concept.provenance["weights"] == [0.7, 1.0]
        attachment.swap("my_cat", "my_dog:0.5")
        assert set(attachment.concepts) == {"my_dog", "moongate"}
