"""What concepts change beside keys and values acts where prompts say their words, and nowhere else."""

import dataclasses
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptkit.base import pipeline
from conceptkit.base.added_tokens import add_tokens
from conceptkit.base.architectures import Architecture
from conceptkit.base.text_features import encode
from conceptkit.concepts import gates as gating
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import RankGate, rank_gates
from conceptkit.errors import BadBlob, ConceptError
from conceptkit.formats.diffusers import readme
from conceptkit.inference import attach as attaching
from conceptkit.inference.attention_masks import WATCHED
from conceptkit.inference.gated_lora import gates
from conceptkit.inference.token_owners import END, OTHER, UNKNOWN, TokenOwners, UNetCall
from conceptkit.merging.compose import compose
from conceptkit.registry.store import Registry
from conceptkit.tuners import targets
from conceptkit.tuners.inject import install_on, uninstall, uninstall_from
from conceptkit.tuners.kv_delta import KVDeltaConfig, KVDeltaLinear
from tests import tiny
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, snapshot

attach = functools.partial(attaching.attach, confine=False)

WAYS = ["regmean", "closed-form", "sum", "linear", "routed", "ties"]


pytestmark = pytest.mark.usefixtures("few_captions")


@pytest.fixture(scope="module")
def pipe():
    return pico_sd()


def speaking(pipe, name="my_dog", noun="dog", seed=0, rank=2, narrow=False, words=None) -> Concept:
    """A concept with a voice; narrow: and keys and values of its own."""
    made = pico_concept(pipe, name, noun, seed=seed)
    make = torch.Generator().manual_seed(seed)
    found = {
        place: (0.5 * torch.randn(o, rank, generator=make), torch.randn(rank, d, generator=make) * d**-0.5)
        for place, map in targets.find(pipe.unet, Architecture.presets["attn"]).items()
        if not Architecture().reads_text(place)
        for o, d in [map.weight.shape]
    }
    delta = {**made.delta, **found} if narrow else found
    recipe = {**made.recipe, "gated_lora_rank": rank}
    return dataclasses.replace(made, delta=delta, recipe=recipe, words=words or made.words)


def by_hand(pipe, concept: Concept, prompt: str, **options) -> torch.Tensor:
    """The picture with all of a delta on the pipeline, whatever the prompt says: a plain adapter's."""
    with add_tokens(pipe, concept.tokens):
        install_on(pipe, concept.delta)
        try:
            for name, words in concept.words.items():
                prompt = prompt.replace(name, words)
            return draw(pipe, prompt, **options)
        finally:
            uninstall_from(pipe)


# the mathematics


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gates_against_a_loop(data):
    names = ("a", "b", "c")
    halves, pictures = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    rows = data.draw(
        st.lists(
            st.one_of(
                st.just([UNKNOWN] * 4),
                st.lists(st.sampled_from([0, 1, 2, OTHER, END]), min_size=4, max_size=4),
            ),
            min_size=halves * pictures,
            max_size=halves * pictures,
        )
    )
    heard = data.draw(
        st.lists(
            st.builds(
                RankGate,
                st.integers(0, 3),
                st.one_of(st.none(), st.lists(st.sampled_from(names), unique=True).map(tuple)),
            ),
            min_size=1,
            max_size=4,
        )
    )
    owners = torch.tensor(rows)
    mentioned = torch.stack([(owners == i).any(1) for i in range(3)], dim=1)
    scene = UNetCall(owners, mentioned, (8, 8), (0,), 0, pictures)
    found = gates(scene, names, heard)
    for k in range(pictures):
        mine = [rows[half * pictures + k] for half in range(halves)]
        said = {names[owner] for row in mine for owner in row if owner >= 0}
        unread = all(owner == UNKNOWN for row in mine for owner in row)
        expected = [
            float(voice.words is None or unread or bool(said & set(voice.words)))
            for voice in heard
            for _ in range(voice.ranks)
        ]
        assert found[k].tolist() == expected


# drawing


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
def test_a_voice_is_silent_where_its_word_is_not_said(build):
    pipe = build()
    before, concept = snapshot(pipe), speaking(pipe)
    plain, said = draw(pipe, "a dog on grass"), by_hand(pipe, concept, "my_dog on grass")
    with attach(pipe, concept):
        with pytest.warns(UserWarning, match="mentions none"):
            assert torch.equal(draw(pipe, "a dog on grass"), plain), "the base's own, bit for bit"
        assert torch.equal(draw(pipe, "my_dog on grass"), said), "as a plain adapter draws it, both halves"
    assert not torch.equal(by_hand(pipe, concept, "a dog on grass"), plain)
    assert snapshot(pipe) == before


def test_pictures_of_one_batch_are_told_apart(pipe):
    concept, dice = speaking(pipe), lambda: [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
    with attach(pipe, concept), pytest.warns(UserWarning, match="mentions none"):
        both = pipe(["a dog on grass", "my_dog on grass"], generator=dice(), **options).images
    plain = pipe(["a dog on grass"] * 2, generator=dice(), **options).images
    assert torch.equal(both[0], plain[0]) and not torch.allclose(both[1], plain[1], atol=1e-3)


def test_guidance_by_perturbed_attention_and_several_pictures(pipe):
    from diffusers import AutoPipelineForText2Image

    guided = AutoPipelineForText2Image.from_pipe(pipe, enable_pag=True, pag_applied_layers=["attn1"])
    options = {"pag_scale": 2.0, "num_images_per_prompt": 2}
    concept = speaking(pipe, narrow=True)
    plain, said = draw(guided, "a dog", **options), by_hand(guided, concept, "my_dog", **options)
    alone = dataclasses.replace(concept, delta=gating.maps_without_text(concept.delta))
    with attach(guided, alone), pytest.warns(UserWarning, match="mentions none"):
        assert torch.equal(draw(guided, "a dog", **options), plain)
    with attach(guided, concept):
        assert torch.allclose(draw(guided, "my_dog", **options), said, atol=1e-6)


def test_prompts_read_elsewhere_may_say_anything(pipe):
    concept = speaking(pipe)
    hidden = torch.randn(1, tiny.LENGTH, pipe.unet.config.cross_attention_dim)
    given_ones = {"prompt_embeds": hidden, "negative_prompt_embeds": torch.zeros_like(hidden)}

    def drawn():
        dice = torch.Generator().manual_seed(0)
        return pipe(generator=dice, num_inference_steps=2, output_type="pt", **given_ones).images[0]

    plain = drawn()
    with attach(pipe, concept):
        assert not torch.allclose(drawn(), plain, atol=1e-3)


def test_scale_goes_through_to_a_voice(pipe):
    concept = speaking(pipe)
    plain = by_hand(pipe, dataclasses.replace(concept, delta={**concept.delta}), "my_dog", guidance_scale=1.0)
    with attach(pipe, concept):
        off = draw(pipe, "my_dog", guidance_scale=1.0, cross_attention_kwargs={"scale": 0.0})
        assert torch.equal(draw(pipe, "my_dog", guidance_scale=1.0), plain)
    with add_tokens(pipe, concept.tokens):
        assert torch.allclose(draw(pipe, "<my_dog> dog", guidance_scale=1.0), off, atol=1e-6)


# merging


@pytest.mark.parametrize(
    "how",
    [how if how in ("regmean", "routed") else pytest.param(how, marks=pytest.mark.slow) for how in WAYS],
)
def test_in_a_merge_each_speaks_for_itself(pipe, how):
    here = pipeline.of(pipe, "pico")
    dog, gate = speaking(pipe, seed=1), speaking(pipe, "moongate", "gate", seed=2, rank=3)
    merged = compose(dog, gate, base=here, merge_method=how, weights=[1.0, 0.5])
    assert [(v.ranks, v.words) for v in rank_gates(merged.concept)] == [(2, ("my_dog",)), (3, ("moongate",))]
    assert "beside keys and values" not in merged.report.text()
    half = compose("moongate:0.5", base=here, registry=_stored(gate)).concept
    for alone, prompt in ((dog, "my_dog on grass"), (half, "a moongate on grass")):
        with attach(pipe, alone):
            expected = draw(pipe, prompt)
        with attach(pipe, merged):
            found = draw(pipe, prompt)
            both = draw(pipe, "my_dog by a moongate")
        assert torch.allclose(found, expected, atol=3e-3), "but for the rounding of what is stored"
        assert torch.allclose(both, by_hand(pipe, merged.concept, "my_dog by a moongate"), atol=1e-5)


def test_side_by_side_each_window_hears_its_own(pipe):
    here = pipeline.of(pipe, "pico")
    dog, gate = speaking(pipe, seed=1), speaking(pipe, "moongate", "gate", seed=2)
    silent = dataclasses.replace(gate, delta={}, recipe={})
    prompt = "my_dog next to a moongate"
    # The left end of the picture is the dog's window alone: what the gate adds never gets there in one step.
    seen = []
    for other in (gate, silent):
        with attach(pipe, compose(dog, other, base=here), side_by_side=True):
            seen.append(draw(pipe, prompt, num_inference_steps=1))
    (w,) = {picture.shape[2] for picture in seen}
    assert w > 16
    own, shared = [abs(seen[0] - seen[1])[:, :, part].max() for part in (slice(0, 4), slice(w - 4, w))]
    assert own < 1e-3 < shared


def added(pipe, prompt: str, **options) -> list[torch.Tensor]:
    """What the first self-attention's queries gain from the delta, call by call: (B, cells, o)."""
    seen = []
    layer = next(m for name, m in pipe.unet.named_modules() if name.endswith("attn1.to_q"))
    hook = layer.register_forward_hook(lambda _, args, y: seen.append(y - layer.base_layer(args[0])))
    try:
        draw(pipe, prompt, **options)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("way", ["regmean", "routed"])
def test_a_voice_stays_in_the_region_of_its_words(pipe, way):
    here = pipeline.of(pipe, "pico")
    dog, gate = speaking(pipe, seed=1), speaking(pipe, "moongate", "gate", seed=2)
    silent = dataclasses.replace(gate, delta={}, recipe={})
    before = snapshot(pipe)
    with attach(pipe, compose(dog, silent, base=here, merge_method=way), regions=["my_dog=left"]):
        (first, *_) = added(pipe, "my_dog by a moongate")
        (other, *_) = added(pipe, "a moongate on grass")
    cells = first.unflatten(1, (8, 8)).abs().sum(3)
    assert (cells[:, :, :4] > 0).all() and (cells[:, :, 4:] == 0).all() and len(cells) == 2
    assert not other.any()
    with attach(pipe, compose(dog, silent, base=here, merge_method=way)):
        (free, *_) = added(pipe, "my_dog by a moongate")
    assert torch.allclose(free.unflatten(1, (8, 8))[:, :, :4], first.unflatten(1, (8, 8))[:, :, :4])
    assert snapshot(pipe) == before


def test_voices_split_the_picture_as_the_words_do(pipe):
    here = pipeline.of(pipe, "pico")
    dog, gate = (
        speaking(pipe, *about, narrow=True) for about in (("my_dog", "dog", 1), ("moongate", "gate", 2))
    )
    silent = dataclasses.replace(
        gate, delta={n: f for n, f in gate.delta.items() if n in here.sizes}, recipe={}
    )
    with attach(pipe, compose(dog, silent, base=here), auto_regions=True):
        calls = added(pipe, "my_dog by a moongate", num_inference_steps=WATCHED + 2)
    early, late = (calls[k].abs().sum(2) for k in (WATCHED - 1, WATCHED + 1))
    assert (early > 0).all()
    assert 0 < int((late[0] > 0).sum()) < late.shape[1]
    assert torch.equal(late[0] > 0, late[1] > 0), "both halves of guidance"


def test_parts_without_a_voice_always_speak(pipe):
    here = pipeline.of(pipe, "pico")
    dog = speaking(pipe, seed=1)
    loud = dataclasses.replace(speaking(pipe, "moongate", "gate", seed=2), recipe={"method": "dreambooth"})
    merged = compose(loud, dog, base=here)
    assert [v.words for v in rank_gates(merged.concept)] == [None, ("my_dog",)]
    assert "moongate also changes" in merged.report.text() and "my_dog also" not in merged.report.text()
    with attach(pipe, loud), pytest.warns(UserWarning, match="mentions none"):
        expected = draw(pipe, "a dog on grass")
    with attach(pipe, merged), pytest.warns(UserWarning, match="mentions none"):
        assert torch.allclose(draw(pipe, "a dog on grass"), expected, atol=3e-3)


def test_a_merge_of_merges_keeps_all_voices(pipe):
    here = pipeline.of(pipe, "pico")
    dog, gate, cup = (
        speaking(pipe, *about)
        for about in (("my_dog", "dog", 1), ("moongate", "gate", 2), ("my_cup", "cup", 3))
    )
    inner = compose(dog, gate, base=here, name="inner")
    found = compose(inner.concept, cup, base=here)
    assert [v.words for v in rank_gates(found.concept)] == [("my_dog",), ("moongate",), ("my_cup",)]
    flat = compose(dog, gate, cup, base=here)
    for name, factors in gating.maps_without_text(flat.concept.delta).items():
        assert torch.allclose(found.concept.delta[name].dense(), factors.dense(), atol=5e-3)
    again = Concept.from_bytes(found.concept.to_bytes())
    assert rank_gates(again) == rank_gates(found.concept)


def test_what_was_learned_together_speaks_for_all_of_it(pipe):
    here = pipeline.of(pipe, "pico")
    dog = speaking(pipe, seed=1)
    gate = dataclasses.replace(speaking(pipe, "moongate", "gate", seed=2), delta=dog.delta)
    merged = compose(dog, gate, base=here).concept
    assert rank_gates(merged) == (RankGate(2, ("moongate", "my_dog")),)
    for name, factors in gating.maps_without_text(merged.delta).items():
        assert torch.allclose(factors.dense(), dog.delta[name].dense(), atol=5e-3), "counted once"


def test_what_was_learned_together_and_always_speaks_goes_on_to(pipe):
    here = pipeline.of(pipe, "pico")
    loud = dataclasses.replace(speaking(pipe, seed=1), recipe={"method": "dreambooth"})
    twin = dataclasses.replace(
        speaking(pipe, "moongate", "gate", seed=2), delta=loud.delta, recipe=loud.recipe
    )
    cup = speaking(pipe, "my_cup", "cup", seed=3)
    for order in itertools.permutations((loud, twin, cup)):
        found = rank_gates(compose(*order, base=here).concept)
        assert sorted(found, key=str) == sorted([RankGate(2, None), RankGate(2, ("my_cup",))], key=str)


def test_taken_off_beside_another_adapter_no_gate_is_left(pipe):
    concept = speaking(pipe)
    pipe.unet.add_adapter(KVDeltaConfig(r=1, target_modules=r".*attn1\.to_q"), "other")
    try:
        with attach(pipe, concept):
            draw(pipe, "my_dog")
        layers = [layer for layer in pipe.unet.modules() if isinstance(layer, KVDeltaLinear)]
        assert layers and not any(layer.gates for layer in layers)
    finally:
        uninstall(pipe.unet)


def test_a_voice_goes_by_the_name_of_today(pipe):
    concept = speaking(pipe).called("tom")
    plain = draw(pipe, "a dog on grass")
    with attach(pipe, concept):
        assert not torch.allclose(draw(pipe, "tom on grass"), plain, atol=1e-3)
    assert rank_gates(concept) == (RankGate(2, ("tom",)),)


@pytest.mark.parametrize(
    "told",
    [None, 3, [[2]], [["x", None]], [[1, ["my_dog"]]], [[2, ["who"]]], [[-2, None], [4, None]], [[2, 5]]],
)
def test_voices_that_do_not_fit_are_refused(pipe, told):
    concept = speaking(pipe)
    damaged = dataclasses.replace(concept, recipe={**concept.recipe, "voices": told})
    before = snapshot(pipe)
    with pytest.raises(BadBlob, match="my_dog") as error:
        attach(pipe, damaged)
    assert "\n" not in str(error.value) and "again" in str(error.value)
    assert snapshot(pipe) == before


def test_the_readme_of_an_export_says_that_a_plain_lora_acts_always(pipe):
    assert "acts on every picture" in readme(speaking(pipe))
    assert "acts on every picture" not in readme(pico_concept(pipe))


def test_merges_without_voices_are_what_they_were(pipe):
    here = pipeline.of(pipe, "pico")
    merged = compose(pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1), base=here).concept
    assert "voices" not in merged.recipe and rank_gates(merged) == ()


def _stored(*concepts: Concept) -> Registry:
    registry = Registry()
    for concept in concepts:
        registry.add(concept.name, concept.to_bytes(), concept.summary())
    return registry


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prompts_are_known_again_after_a_copy_and_a_cast(dtype):
    pipe = pico_sd()
    owners = TokenOwners(pipe, {"my_dog": ["dog"], "moongate": ["gate"]})
    prompts = ["photo of a dog", "photo of a gate", ""]
    hidden = encode(pipe, prompts).hidden
    owners.note([hidden], [prompts])
    wanted = owners.owners(prompts)
    for row, owner in zip(hidden, wanted, strict=True):
        assert torch.equal(owners._find(row.clone())[1], owner)
        assert torch.equal(owners._find(row.to(dtype))[1], owner)
        assert torch.equal(owners._find(row.to(dtype).float())[1], owner)
    with pytest.raises(ConceptError, match="encode the prompt again"):
        owners._find(encode(pipe, ["a cat in the snow"]).hidden[0])
