"""Every family and every action: learn, store, compose, attach, draw, detach, resume, export."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline

from conceptkit.base import conditioning, pipeline
from conceptkit.base.architectures import architecture_of, denoiser_of
from conceptkit.base.text_features import encode, positions, spell
from conceptkit.concepts.concept import Concept
from conceptkit.data import photos
from conceptkit.errors import BadRegion, ConceptError
from conceptkit.features import caption_statistics
from conceptkit.features.captions import captions
from conceptkit.formats import diffusers as dialect
from conceptkit.inference.attach import attach
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.trainer import learn
from conceptkit.merging.compose import compose
from conceptkit.merging.method_table import MERGE_METHODS
from conceptkit.tuners.inject import install_on, uninstall_from
from tests import language_model_tiny, projected_tiny, tiny, transformers_tiny
from tests.learning import TINY, draw_photos, method, outcome, teach

LANGUAGE_MODELS, PROJECTED = language_model_tiny.MAKERS, projected_tiny.MAKERS
MAKERS = {
    "stable-diffusion": tiny.pico_sd,
    "sdxl": tiny.pico_sdxl,
    "sd3": transformers_tiny.pico_sd3,
    "sd3 without t5": lambda: transformers_tiny.pico_sd3(with_t5=False),
    "flux": transformers_tiny.pico_flux,
    "flux without guidance": lambda: transformers_tiny.pico_flux(guidance=False),
    "pixart": transformers_tiny.pico_pixart,
    **LANGUAGE_MODELS,
    **PROJECTED,
}
LOADERS = [
    name
    for name in MAKERS
    if name not in ("pixart", "hunyuan-dit", "sd3 without t5", "flux without guidance")
]
"""Families that plain diffusers loads a LoRA into."""
SLOW = ("sdxl", "sd3 without t5", "flux without guidance", "auraflow", "chroma", "flux2", *PROJECTED)
"""Families that differ little from another in how they are called."""
PROMPT = "a photo of a dog in the snow"
RECIPE = replace(TINY, prior_loss_weight=0.0, gated_lora_rank=2)


@pytest.fixture(scope="module", autouse=True)
def few_captions():
    """As many as tell something of a width of 32; hundreds through T5 take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_statistics, "captions", lambda family: captions(family)[:40])
        yield


@dataclass(frozen=True)
class Made:
    base: pipeline.Base
    concepts: tuple[Concept, Concept]


@cache
def base_of(family: str) -> pipeline.Base:
    return pipeline.of(MAKERS[family](), family)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return photos.read(draw_photos(tmp_path_factory.mktemp("dog"), [0, 1]))


def some_slow(names, slow) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@pytest.fixture(scope="module", params=some_slow(MAKERS, SLOW))
def learned(request, shown) -> Made:
    base = base_of(request.param)
    first = teach(base, shown, RECIPE)
    return Made(base, (first, learn(base, shown, "my_gate", "gate", RECIPE, seed=1)))


def latents(pipe: DiffusionPipeline, prompt: str) -> torch.Tensor:
    dice = torch.Generator().manual_seed(3)
    kind = architecture_of(pipe)
    options = kind.guided({"guidance_scale": 2.0}, 1) | kind.draw_options(pipe)
    return pipe(
        prompt=[prompt], num_inference_steps=2, generator=dice, output_type=kind.latent_output, **options
    ).images


def state(base: pipeline.Base) -> dict[str, str]:
    parts = {name: part for name, part in base.pipe.components.items() if isinstance(part, torch.nn.Module)}
    names = {
        name: [(path, id(module)) for path, module in part.named_modules()] for name, part in parts.items()
    }
    return {name: f"{tiny.state_hash(part)} {names[name]}" for name, part in parts.items()}


def test_words_are_found_in_what_the_text_site_reads(learned):
    base = learned.base
    features = encode(base.pipe, ["a photo of a red dog in the snow", "a cat"])
    assert features.hidden.shape == (2, features.ids.shape[1], base.width)
    there = positions(features.ids, spell(base.pipe, "red dog"))
    spelt = [word for word in spell(base.pipe, "red dog") if len(word)]
    assert there.sum(dim=1).tolist() == [sum(map(len, spelt)), 0]


def test_the_default_method_learns_at_the_text_site_and_beside_it(learned):
    base, (concept, _) = learned.base, learned.concepts
    assert set(base.sizes) <= set(concept.delta) and len(concept.delta) > len(base.sizes)
    still = [name for name, factors in concept.delta.items() if not factors.first.any()]
    # The last block of SD3 throws its text away, so the query of text has no effect there.
    assert still in ([], ["transformer_blocks.1.attn.add_q_proj"])
    assert concept.rows is not None and concept.rows.shape[1] == base.width
    stored = Concept.from_bytes(concept.to_bytes())
    assert stored.to_bytes() == concept.to_bytes()


LORAS = ("dreambooth", "custom-diffusion")


@pytest.mark.parametrize("name", ["textual-inversion", *some_slow(LORAS, LORAS)])
def test_other_methods_learn(learned, shown, name):
    base, before = learned.base, state(learned.base)
    concept = teach(base, shown, method(name, prior_loss_weight=0.0))
    assert state(base) == before
    plain = latents(base.pipe, PROMPT)
    with attach(base.pipe, Concept.from_bytes(concept.to_bytes())):
        assert not torch.equal(latents(base.pipe, PROMPT.replace("dog", "my_dog")), plain)
    assert state(base) == before


WAYS = [name for name in MERGE_METHODS if name != "joint"]


@pytest.mark.parametrize("how", some_slow(WAYS, set(WAYS) - {"regmean", "routed"}))
def test_two_are_composed_by_every_merge_method(learned, how):
    base, before = learned.base, state(learned.base)
    merge = compose(*learned.concepts, base=base, merge_method=how)
    plain = latents(base.pipe, "a dog next to a gate")
    with attach(base.pipe, merge):
        together = latents(base.pipe, "a my_dog next to a my_gate")
    assert not torch.equal(together, plain) and state(base) == before


def test_a_closed_form_merge_keeps_the_concepts_words_or_says_by_how_much_not(learned):
    merged = compose(*learned.concepts, base=learned.base, merge_method="closed-form")
    sizes, missed = learned.base.sizes, []
    for concept in learned.concepts:
        rows = concept.rows.double().float()
        wanted, found = (delta.rows(sizes, rows) for delta in (concept.delta, merged.concept.delta))
        missed.append(torch.stack([(found - wanted).norm(), wanted.norm()]))
    off, whole = torch.stack(missed).norm(dim=0)
    assert merged.report.problem in ("exact", "damped")
    assert off <= (1e-2 + (merged.report.problem == "damped") * 1.1 * merged.report.missed) * whole


def test_it_acts_on_prompts_that_name_it_and_comes_off_bit_for_bit(learned):
    base, (concept, _) = learned.base, learned.concepts
    before, plain = state(base), latents(base.pipe, PROMPT)
    with attach(base.pipe, concept):
        named = latents(base.pipe, PROMPT.replace("dog", "my_dog"))
    assert not torch.equal(named, plain)
    assert state(base) == before and torch.equal(latents(base.pipe, PROMPT), plain)


@pytest.mark.slow
def test_learning_is_resumed_to_the_same_bytes(learned, shown, tmp_path):
    class Stopped(BaseException):
        pass

    def stop(done, total, text):
        if done == 4:
            raise Stopped

    path = tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        outcome(learned.base, shown, RECIPE, checkpoints=CheckpointManager(path, every=0.0), progress=stop)
    keeper = CheckpointManager(path, every=0.0)
    keeper.resume()
    again = outcome(learned.base, shown, RECIPE, checkpoints=keeper)
    assert again.whole.to_bytes() == learned.concepts[0].to_bytes()


@pytest.mark.parametrize("family", some_slow(LOADERS, SLOW))
def test_plain_diffusers_draws_the_same_from_the_export(family, shown, tmp_path):
    base = base_of(family)
    concept = replace(teach(base, shown, method("dreambooth", prior_loss_weight=0.0)), tokens={}, words={})
    for name, content in dialect.files(concept).items():
        (tmp_path / name).write_bytes(content)
    plain = MAKERS[family]()
    before = latents(plain, PROMPT)
    plain.load_lora_weights(tmp_path)
    loaded = latents(plain, PROMPT)
    install_on(base.pipe, concept.delta)
    try:
        ours = latents(base.pipe, PROMPT)
    finally:
        uninstall_from(base.pipe)
    assert not torch.equal(loaded, before)
    assert (loaded - ours).norm() <= 1e-5 * ours.norm()
    parts = concept.delta.by_component()
    own = parts["unet" if "unet" in parts else "transformer"]
    unread = {name for name in own if not hasattr(denoiser_of(plain).get_submodule(name), "lora_A")}
    assert not unread, "every map has its LoRA"


@pytest.mark.parametrize("family", [*LANGUAGE_MODELS, *PROJECTED])
def test_the_denoiser_is_called_as_its_pipeline_calls_it(family):
    """Time, sign, packing, ids and masks: the prediction of the first step, bit for bit or nearly."""
    pipe, kind = base_of(family).pipe, base_of(family).architecture
    seen = []

    def step(prediction, t, latents, **more):
        seen.append((prediction.clone(), t, latents.clone()))
        return original(prediction, t, latents, **more)

    original = pipe.scheduler.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", step)
        options = kind.guided({"guidance_scale": 0.0 if family == "z-image" else 1.0}, 1)
        pipe(prompt=[PROMPT], num_inference_steps=2, **options, **kind.draw_options(pipe))
    theirs, t, noisy = seen[0]
    theirs = theirs[:, : noisy.shape[1]] if theirs.ndim == 4 else theirs
    if theirs.ndim == 3:
        theirs, noisy = kind.drawn_latents(pipe, theirs), kind.drawn_latents(pipe, noisy)
    with torch.no_grad():
        ours = conditioning.predict(pipe, noisy, t.reshape(1), conditioning.encode(pipe, [PROMPT]))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("family", [*LANGUAGE_MODELS, *PROJECTED])
def test_prompts_of_several_lengths_are_predicted_as_each_alone(family):
    base = base_of(family)
    prompts, dice = [PROMPT, "a cat"], torch.Generator().manual_seed(0)
    one, two = (conditioning.encode(base.pipe, [prompt]) for prompt in prompts)
    side = base.architecture.latents(base.pipe, torch.zeros(1, 3, 16, 16)).shape
    noisy, t = torch.randn(2, *side[1:], generator=dice), torch.tensor([400.0, 400.0])
    with torch.no_grad():
        both = conditioning.predict(base.pipe, noisy, t, conditioning.concatenate(one, two))
        alone = [
            conditioning.predict(base.pipe, noisy[k : k + 1], t[:1], own) for k, own in enumerate((one, two))
        ]
    assert torch.allclose(both, torch.cat(alone), atol=1e-4)


@pytest.mark.parametrize("family", [*LANGUAGE_MODELS, "hunyuan-dit", "kolors"])
def test_pictures_become_the_latents_that_the_pipeline_takes_apart(family):
    pipe, kind = base_of(family).pipe, base_of(family).architecture
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    framed = pixels.unsqueeze(2) if family == "qwen-image" else pixels
    encoded = pipe.vae.encode(framed)
    mean = encoded.latent if family == "sana" else encoded.latent_dist.mode()
    latents, decoded, real = kind.latents(pipe, pixels), [], pipe.vae.decode

    def step(prediction, t, inner, **_):
        if inner.ndim == 4:
            return (latents,)
        index = kind.drawn_latents(pipe, torch.arange(inner.numel()).view(inner.shape).float())
        packed = torch.zeros(inner.numel())
        packed[index.flatten().long()] = latents.flatten()
        return (packed.view(inner.shape),)

    def decode(z, *args, **more):
        decoded.append(z)
        return real(z, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", step)
        patch.setattr(pipe.vae, "decode", decode)
        pipe(prompt=["a cat"], num_inference_steps=1, **kind.draw_options(pipe))
    assert torch.allclose(decoded[0], mean, atol=1e-4)


def test_a_gate_stays_open_in_the_other_half_of_guidance(shown):
    """Where both halves have a call of their own, a LoRA acts in both, as one that is always there does."""
    base = base_of("lumina2")
    concept = teach(base, shown, RECIPE)
    wide = replace(concept, delta=concept.delta.without(base.sizes))
    with attach(base.pipe, wide):
        gated = latents(base.pipe, PROMPT.replace("dog", "my_dog"))
        install = [layer for layer in base.denoiser.modules() if getattr(layer, "gates", None)]
        for layer in install:
            layer.gates.clear()
        assert torch.equal(latents(base.pipe, PROMPT.replace("dog", "my_dog")), gated)


@pytest.mark.parametrize("family", ["z-image", "if"])
def test_regions_by_attention_and_photos_to_look_at_are_refused_in_a_sentence(family, shown):
    base = base_of(family)
    concept = teach(base, shown, RECIPE)
    with pytest.raises(BadRegion, match="leave them out"), attach(base.pipe, concept, auto_regions=True):
        pass
    with pytest.raises(ConceptError, match="--method custom"):
        teach(base, shown, method("vico", prior_loss_weight=0.0))


def test_pictures_of_the_class_are_latents_where_pixels_are(shown):
    base = base_of("if")
    concept = teach(base, shown, method("dreambooth", prior_loss_weight=1.0))
    assert all(factors.first.any() for factors in concept.delta.values())


def test_only_a_prompt_without_names_is_warned_of_and_no_negative_prompt(shown):
    """Where the pipeline reads a negative prompt by a call of its own, after the prompt."""
    base = base_of("qwen-image")
    concept, pipe = teach(base, shown, RECIPE), base.pipe
    asked = {"negative_prompt": "blurry", "num_inference_steps": 1, "true_cfg_scale": 2.0}
    asked |= base.architecture.draw_options(pipe) | {"output_type": "latent"}
    with attach(pipe, concept):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            pipe(prompt="a my_dog", **asked)
        for _ in range(2):
            with pytest.warns(UserWarning, match="^The prompt 'a dog' mentions none"):
                pipe(prompt="a dog", **asked)


@pytest.mark.parametrize("family", ["z-image", "sana"])
def test_what_the_readme_of_an_export_says_gives_the_word_too(family, shown, tmp_path):
    base = base_of(family)
    concept = teach(base, shown, replace(RECIPE, max_train_steps=0, num_vectors=2))
    for name, content in dialect.files(concept).items():
        (tmp_path / name).write_bytes(content)
    code = (tmp_path / "README.md").read_text().split("```python")[1].split("```")[0]
    lines = [line for line in code.replace("FOLDER", str(tmp_path)).splitlines() if "pipe(prompt" not in line]
    pipe = MAKERS[family]()
    given = {"pipe": pipe}
    exec("\n".join(line for line in lines if "from_pretrained" not in line), given)
    loaded = latents(pipe, "a photo of <my_dog> <my_dog>_1 dog in the snow")
    with attach(base.pipe, concept):
        ours = latents(base.pipe, "a photo of my_dog in the snow")
    assert torch.allclose(loaded, ours, atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart", "if"])
def test_what_a_transformer_cannot_do_is_a_sentence(family, shown):
    base = base_of(family)
    with pytest.raises(ConceptError, match=r"--method custom"):
        teach(base, shown, method("vico", prior_loss_weight=0.0))


def test_a_folder_that_was_saved_without_a_part_loads_without_it(tmp_path):
    """Stable Diffusion 3 is often kept without its T5 encoder; diffusers wants to be told so."""
    transformers_tiny.pico_sd3(with_t5=False).save_pretrained(tmp_path)
    pipe = pipeline.load(str(tmp_path)).pipe
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    assert pipe.text_encoder_3 is None and pipe.text_encoder_2 is not None
