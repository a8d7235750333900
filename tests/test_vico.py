"""Image cross-attention: its mathematics, its hooks, and a concept that carries a reference photo."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptkit.base import pipeline as bases
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.cli.concepts import REFERENCE
from conceptkit.cli.main import main
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.concept import read as read_concept
from conceptkit.concepts.delta import Delta
from conceptkit.concepts.reference import Reference
from conceptkit.errors import BadBase, BadBlob, BadRecipe, BadRegion, BaseMismatch, ConceptError
from conceptkit.formats.dialects import export
from conceptkit.inference.attach import attach
from conceptkit.merging.compose import compose
from conceptkit.merging.shrink import shrink_concept
from conceptkit.registry import concept_header, concept_validation
from conceptkit.registry.store import Registry
from conceptkit.tuners import image_attention_functional
from conceptkit.tuners.image_attention import ImageAttention, blocks, showing, sizes
from tests.commands import run
from tests.test_base import SD15
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, scheduler, snapshot, unet

PROMPT = "a photo of my_dog in the snow"


def seeing(pipe, name: str = "my_dog", seed: int = 0, rank: int = 2, size: float = 0.5) -> Concept:
    """A concept of random values that looks at a photo of noise."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    maps = {map: (size * random(o, rank), size * random(rank, d)) for map, (o, d) in sizes(pipe.unet).items()}
    concept = pico_concept(pipe, name)
    object.__setattr__(concept, "delta", Delta())
    object.__setattr__(concept, "recipe", {"method": "vico"})
    object.__setattr__(concept, "reference", Reference(random(4, 8, 8).half().float(), maps))
    return concept


def blind(concept: Concept) -> Concept:
    """The same concept without its photo."""
    return Concept(**{**vars(concept), "reference": None})


@pytest.fixture
def pipe():
    return pico_sd()


# mathematics


def variance_between(row: np.ndarray, mask: np.ndarray) -> float:
    return mask.mean() * (1 - mask.mean()) * (row[mask].mean() - row[~mask].mean()) ** 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=12))
def test_otsu_is_the_best_of_all_thresholds(values):
    row = np.array(values, dtype=float)
    (mask,) = image_attention_functional.otsu(torch.tensor([values]).float()).numpy()
    thresholds = sorted(set(values))[1:]
    if not thresholds:
        assert mask.all(), "an even row has no dark part"
        return
    assert row[mask].min() > row[~mask].max(initial=-1)
    best = max(variance_between(row, row >= threshold) for threshold in thresholds)
    assert variance_between(row, mask) == pytest.approx(best)


def test_otsu_of_one_patch_and_of_rows_apart():
    assert image_attention_functional.otsu(torch.zeros(3, 1)).all()
    rows = torch.tensor([[0.0, 0.1, 0.9, 1.0], [5.0, 0.0, 0.0, 0.0]])
    assert image_attention_functional.otsu(rows).tolist() == [
        [False, False, True, True],
        [True, False, False, False],
    ]


def test_looking_at_itself_with_the_output_of_self_attention_is_self_attention(pipe):
    block = next(iter(blocks(pipe.unet).values()))
    attn = block.attn1
    width = attn.to_q.weight.shape[1]
    x = torch.randn(2, 9, width, generator=torch.Generator().manual_seed(0))
    zero = (torch.zeros(width, width),)
    maps = {"to_q": zero, "to_k": zero, "to_v": zero, "to_out": (attn.to_out[0].weight.detach(),)}
    everything = torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        wanted = attn(block.norm1(x)) - attn.to_out[0].bias
        assert torch.allclose(
            image_attention_functional.look(block, x, x, everything, Delta(maps)), wanted, atol=1e-5
        )
        silent = Delta(maps | {"to_out": zero})
        assert not image_attention_functional.look(block, x, x, everything, silent).any()


def test_only_patches_inside_of_the_mask_are_seen(pipe):
    block = next(iter(blocks(pipe.unet).values()))
    width = block.attn1.to_q.weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    cells, patches, more = (torch.randn(1, k, width, generator=generator) for k in (5, 6, 6))
    maps = {
        name: (torch.randn(width, width, generator=generator),) for name in ("to_q", "to_k", "to_v", "to_out")
    }
    mask = torch.tensor([[True, False, True, True, False, False]])
    with torch.no_grad():
        seen = image_attention_functional.look(block, cells, patches, mask, Delta(maps))
        other = torch.where(mask.unsqueeze(2), patches, more)
        assert torch.allclose(
            image_attention_functional.look(block, cells, other, mask, Delta(maps)), seen, atol=1e-5
        )
        few = patches[:, mask[0]]
        every = torch.ones(1, 3, dtype=torch.bool)
        assert torch.allclose(
            image_attention_functional.look(block, cells, few, every, Delta(maps)), seen, atol=1e-5
        )
        assert not torch.allclose(
            image_attention_functional.look(block, cells, more, mask, Delta(maps)), seen, atol=1e-2
        )


def test_attention_to_the_word_is_drawn_to_that_to_the_end_of_text():
    word = torch.tensor([[0.2, 0.4, 0.1]], requires_grad=True)
    end = torch.tensor([[0.5, 0.25, 1.0]], requires_grad=True)
    apart = image_attention_functional.unlike(word, end)
    assert float(apart.detach()) == pytest.approx(((0.5 - 0.5) ** 2 + (1 - 0.25) ** 2 + (0.25 - 1) ** 2) / 3)
    apart.sum().backward()
    assert word.grad.any() and end.grad is None
    assert float(image_attention_functional.unlike(3 * end.detach(), end)) == pytest.approx(0)
    assert image_attention_functional.unlike(torch.zeros(1, 3), end).isfinite().all()


def test_on_stable_diffusion_the_four_blocks_of_the_paper_look():
    with torch.device("meta"):
        found = blocks(UNet2DConditionModel(**SD15))
    places = [name.removesuffix(".transformer_blocks.0") for name in found]
    assert places == [
        "up_blocks.1.attentions.1",
        "up_blocks.2.attentions.0",
        "up_blocks.2.attentions.2",
        "up_blocks.3.attentions.1",
    ]


def test_a_unet_without_attention_on_its_way_up_cannot_look():
    with pytest.raises(BadBase, match="no attention on its way up"):
        blocks(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["ddim", "flow"])
def test_a_step_is_found_by_what_the_unet_is_told(kind):
    schedule = schedule_of(FlowMatchEulerDiscreteScheduler() if kind == "flow" else scheduler("ddim"))
    t = torch.tensor([0, 1, 17, 500, 999])
    assert schedule.step_of(schedule.told(t)).tolist() == t.tolist()
    assert schedule.step_of(torch.tensor([2000.0])).tolist() == [999]


# hooks


def test_a_unet_that_is_shown_nothing_is_the_frozen_one(pipe):
    x, hidden = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 32)
    with torch.no_grad():
        plain = pipe.unet(x, 10, hidden).sample
        attention = ImageAttention(pipe.unet, seeing(pipe).reference.maps)
        remove = attention.install()
        own = torch.full((1, 5, 1), 0.2)
        seen = attention.look(lambda: pipe.unet(2 * x, 10, hidden), own)
        assert torch.equal(pipe.unet(x, 10, hidden).sample, plain)
        with showing(seen):
            shown = pipe.unet(x, 10, hidden).sample
        assert not torch.equal(shown, plain)
        assert torch.equal(pipe.unet(x, 10, hidden).sample, plain)
        remove()
        with showing(seen):
            assert torch.equal(pipe.unet(x, 10, hidden).sample, plain)


def test_maps_of_another_unet_do_not_fit(pipe):
    maps = dict(seeing(pipe).reference.maps)
    with pytest.raises(BaseMismatch, match="use the base it was learned on"):
        ImageAttention(unet(32), dict(list(maps.items())[1:]))
    name = next(iter(maps))
    with pytest.raises(BaseMismatch, match="should be"):
        ImageAttention(unet(32), maps | {name: (torch.zeros(3, 3),)})


# drawing


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
def test_detach_leaves_the_pipeline_bit_identical(build):
    pipe = build()
    before = snapshot(pipe)
    concept = seeing(pipe)
    with attach(pipe, blind(concept)):
        word = draw(pipe, PROMPT)
    with attach(pipe, concept):
        photo = draw(pipe, PROMPT)
        assert torch.equal(draw(pipe, PROMPT), photo), "the same seed, the same picture"
    assert not torch.equal(photo, word)
    assert snapshot(pipe) == before


def test_only_rows_with_the_word_are_shown_the_photo(pipe):
    concept = seeing(pipe)
    with attach(pipe, blind(concept)), torch.no_grad():
        hidden, empty = pipe.encode_prompt(PROMPT, "cpu", 1, True)
        batch = torch.cat([empty, hidden, empty, hidden])
        x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        plain = pipe.unet(x, 10, batch).sample
    with attach(pipe, concept), torch.no_grad():
        again, nothing = pipe.encode_prompt(PROMPT, "cpu", 1, True)
        assert torch.equal(again, hidden) and torch.equal(nothing, empty)
        seen = pipe.unet(x, 10, batch).sample
    same = [torch.equal(a, b) for a, b in zip(seen, plain, strict=True)]
    assert same == [True, False, True, False]


def test_guidance_strengthens_the_photo_and_a_prompt_without_the_word_has_none(pipe):
    concept = seeing(pipe)
    with attach(pipe, blind(concept)), pytest.warns(UserWarning, match="mentions none"):
        plain = draw(pipe, "a cat in the snow")
    with attach(pipe, concept), pytest.warns(UserWarning, match="mentions none"):
        assert torch.equal(draw(pipe, "a cat in the snow"), plain)
        assert draw(pipe, PROMPT, guidance_scale=1.0).isfinite().all()


def test_the_unet_looks_once_for_all_pictures_of_a_prompt(pipe, monkeypatch):
    sizes_seen = []
    forward = pipe.unet.forward

    def counted(sample, *args, **kwargs):
        sizes_seen.append(len(sample))
        return forward(sample, *args, **kwargs)

    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    with attach(pipe, seeing(pipe)):
        alone = draw(pipe, PROMPT, seed=1)
        with monkeypatch.context() as patch:
            patch.setattr(pipe.unet, "forward", counted)
            generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
            three = pipe([PROMPT] * 3, generator=generators, **options).images
    assert sizes_seen == [1, 6, 1, 6]
    assert np.allclose(three[1].transpose(2, 0, 1), alone.numpy(), atol=1e-3)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
def test_any_scheduler_noises_the_photo_as_it_does_the_picture(pipe, kind, monkeypatch):
    pipe.register_modules(
        scheduler=kind.from_config(pipe.scheduler.config) if kind is EulerDiscreteScheduler else kind()
    )
    concept, given = seeing(pipe), []
    forward = pipe.unet.forward

    def watched(sample, timestep, *args, **kwargs):
        given.append((sample, float(timestep.flatten()[0])))
        return forward(sample, timestep, *args, **kwargs)

    schedule = schedule_of(pipe.scheduler)
    with attach(pipe, concept):
        monkeypatch.setattr(pipe.unet, "forward", watched)
        if kind is EulerDiscreteScheduler:
            draw(pipe, PROMPT)
        else:
            with torch.no_grad():
                hidden = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
                pipe.unet(torch.ones(1, 4, 8, 8), torch.tensor([700.0]), hidden)
    (photo, told), (_, beside) = given[:2]
    assert told == beside
    t = schedule.step_of(torch.tensor([told]))
    share = float(schedule.bars[t].sqrt()) if schedule.sigmas is None else 1 - float(schedule.sigmas[t])
    rest = float((1 - schedule.bars[t]).sqrt()) if schedule.sigmas is None else float(schedule.sigmas[t])
    noise = (photo[0] - share * concept.reference.latent) / rest
    assert abs(float(noise.mean())) < 0.25 and abs(float(noise.std()) - 1) < 0.2


def test_embeddings_from_elsewhere_are_refused(pipe):
    hidden = torch.randn(1, 77, 32)
    with attach(pipe, seeing(pipe)), pytest.raises(ConceptError, match="encode the prompt again"):
        pipe(prompt_embeds=hidden, negative_prompt_embeds=hidden, num_inference_steps=1)


# the concept


def test_a_photo_survives_the_way_to_bytes_and_back(pipe):
    concept = seeing(pipe)
    data = concept.to_bytes()
    assert data == concept.to_bytes()
    after = Concept.from_bytes(data)
    assert torch.equal(after.reference.latent, concept.reference.latent)
    assert set(after.reference.maps) == set(concept.reference.maps)
    for name, factors in concept.reference.maps.items():
        for one, other in zip(after.reference.maps[name], factors, strict=True):
            assert torch.allclose(one, other, rtol=1e-2, atol=1e-3)
    assert after.to_bytes() == data
    told = json.loads(
        json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["conceptkit"]
    )
    assert told["format"] == 2 and told["reference"]["size"] == [8, 8]
    assert concept_header.read(data).summary == concept.summary() and concept.summary()["reference"] is True
    assert concept_validation.check(data).summary == concept.summary()
    plain = pico_concept(pipe).to_bytes()
    assert b'\\"format\\":1' in plain and b"reference" not in plain
    assert "reference" not in pico_concept(pipe).summary()


@pytest.mark.parametrize(
    "old,new", [(b"[8,8]", b"[8,9]"), (b"[8,8]", b"[0,8]"), (b'"format\\":2', b'"format\\":1')]
)
def test_a_damaged_photo_is_refused(pipe, old, new):
    data = seeing(pipe).to_bytes()
    assert old in data
    for read in (Concept.from_bytes, concept_validation.check):
        with pytest.raises(BadBlob, match="not a concept|reference photo"):
            read(data.replace(old, new))


def test_by_name_alone_and_at_a_strength(pipe):
    concept = seeing(pipe)
    with Registry() as registry:
        registry.add("my_dog", concept.to_bytes(), concept.summary())
        stored = read_concept(registry, "my_dog")
        with attach(pipe, "my_dog", registry=registry):
            alone = draw(pipe, PROMPT)
        with attach(pipe, stored):
            assert torch.equal(draw(pipe, PROMPT), alone)
        here = bases.of(pipe, "pico")
        merge = compose("my_dog", registry=registry, base=here)
        assert merge.concept.reference is not None and "my_dog" in merge.report.text()
        with attach(pipe, merge):
            assert torch.equal(draw(pipe, PROMPT), alone)
        half = compose("my_dog:0.5", registry=registry, base=here).concept.reference
        for name, factors in stored.reference.maps.items():
            share = 0.5 if name.endswith("to_out") else 1.0
            assert torch.allclose(half.maps[name].first, share * factors.first, rtol=1e-2, atol=1e-3)
        with attach(pipe, "my_dog:0.5", registry=registry):
            assert not torch.equal(draw(pipe, PROMPT), alone)


def test_what_has_no_place_for_a_photo_says_so(pipe, tmp_path):
    concept, gate = seeing(pipe), pico_concept(pipe, "moongate", "gate", seed=1)
    before, here = snapshot(pipe), bases.of(pipe, "pico")
    again = "learn it again with --method custom"
    for words in ((concept, gate), (gate, concept)):
        with pytest.raises(ConceptError, match=f"my_dog looks at its reference photo.*{again}"):
            compose(*words, base=here)
    with pytest.raises(ConceptError, match=f"my_dog looks at.*{again}"):
        attach(pipe, concept, merge_method="routed")
    for options in ({"regions": ["my_dog=left"]}, {"separate": True}):
        with pytest.raises(BadRegion, match=f"my_dog looks at.*{again}"):
            attach(pipe, concept, **options)
    with pytest.raises(BadRecipe, match="my_dog looks at.*smaller --rank"):
        shrink_concept(concept, torch.eye(32), rank=1)
    with pytest.raises(ConceptError, match=f"my_dog looks at.*--bundle.*{again}"):
        export(concept, tmp_path / "out")
    assert not (tmp_path / "out").exists() and snapshot(pipe) == before


def test_show_and_export_tell_of_the_photo(pipe, home, tmp_path):
    concept = seeing(pipe)
    with Registry() as registry:
        registry.add("my_dog", concept.to_bytes(), concept.summary())
    assert REFERENCE in run("show", "my_dog")
    assert json.loads(run("show", "my_dog", "--json"))["summary"]["reference"] is True
    result = CliRunner().invoke(main, ["export", "my_dog", "--bundle", str(tmp_path / "ours.bundle")])
    assert result.exit_code == 0 and "holds the reference photo of my_dog@1" in result.stderr
