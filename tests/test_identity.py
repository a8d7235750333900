"""Which base is this: what features and maps depend on is part of its identity, and of the keys of caches."""

import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig

from conceptkit.base import fingerprint, pipeline
from conceptkit.errors import BadBlob, BaseMismatch, ConceptError
from conceptkit.features import caption_statistics, captions, concept_rows
from conceptkit.inference import attach_steps
from conceptkit.inference.attach import attach
from conceptkit.learn.prior_preservation import weights_digest
from conceptkit.merging.compose import compose
from conceptkit.registry.store import Registry
from conceptkit.tuners.inject import install_on, uninstall_from
from tests.tiny import pico_concept, pico_sd, pico_sdxl

BUILDS = pytest.mark.parametrize("build", [pico_sd, pico_sdxl])


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)


def lora(module, targets, name="style", size=0.05):
    """A LoRA of random values, the same whenever it is made."""
    module.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), name)
    generator = torch.Generator().manual_seed(0)
    for path, weight in module.named_parameters():
        if "lora_" in path:
            weight.data.copy_(size * torch.randn(weight.shape, generator=generator))


def shaken(pipe, by, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for weight in pipe.text_encoder.parameters():
        weight.data += (
            by
            * weight.norm()
            * torch.nn.functional.normalize(
                torch.randn(weight.shape, generator=generator).flatten(), dim=0
            ).view_as(weight)
        )
    return pipe


@BUILDS
def test_another_text_encoder_is_another_base(build):
    here = pipeline.of(build(), "here")
    near, far = (fingerprint.fingerprint_of(shaken(build(), by)) for by in (0.1, 3.0))
    assert near.exact != here.fingerprint.exact or near.text_exact != here.fingerprint.text_exact
    assert near.distance(here.fingerprint) == 0 and not near.same(here.fingerprint)
    if build is pico_sd:
        assert near.text_distance(here.fingerprint) == pytest.approx(0.1, rel=0.5)
    assert "their text encoders differ by" in pipeline.check_fits(near, here, "my_dog")
    with pytest.raises(BaseMismatch, match="my_dog was learned on"):
        pipeline.check_fits(far, here, "my_dog")


def test_concepts_of_early_versions_still_fit_their_base():
    here = pipeline.of(pico_sd())
    stored = here.fingerprint.to_json()
    assert fingerprint.Fingerprint.from_json(stored) == here.fingerprint
    early = fingerprint.Fingerprint.from_json({k: v for k, v in stored.items() if "text" not in k})
    assert early.same(here.fingerprint) and here.fingerprint.same(early)
    assert pipeline.check_fits(early, here, "my_dog") is None and early.to_json().keys() == {
        "architecture",
        "exact",
        "sketch",
    }
    for broken in ({"text_sketch": [0.5]}, {"text_exact": 3}, {"text_sketch": 3}, {"text_sketch": [1] * 16}):
        with pytest.raises(BadBlob, match="sketch is damaged"):
            fingerprint.Fingerprint.from_json(stored | broken)


def test_the_sketch_of_text_encoders_is_that_of_double_precision(monkeypatch):
    pipe = pico_sd()
    found = fingerprint.fingerprint_of(pipe).text_sketch
    table = pipe.text_encoder.get_input_embeddings().weight
    sketch, energy = np.zeros(16), 0.0
    for name, weight in pipe.text_encoder.named_parameters():
        rows = weight[: pipe.tokenizer.vocab_size] if weight is table else weight
        flat = rows.detach().half().double().numpy().reshape(len(rows), -1)
        left, right = (
            fingerprint._signs(f"0 {name} {side}", size, 16).double().numpy()
            for side, size in zip(("outputs", "inputs"), flat.shape, strict=True)
        )
        sketch += np.einsum("ko,oi,ki->k", left, flat, right)
        energy += np.square(flat).sum()
    assert np.allclose(found, sketch / np.sqrt(16 * energy), rtol=0, atol=5.001e-7)
    monkeypatch.setattr(fingerprint, "ROWS_AT_ONCE", 3)
    assert fingerprint.fingerprint_of(pico_sd()).text_sketch == found


def test_adapters_at_work_are_part_of_what_a_base_is():
    pipe = pico_sd()
    plain, digest = fingerprint.fingerprint_of(pipe), fingerprint.features_digest(pipe)
    lora(pipe.text_encoder, ["q_proj"])
    with_it = fingerprint.fingerprint_of(pipe)
    assert with_it.text_exact != plain.text_exact and with_it.text_distance(plain) > 0
    assert fingerprint.features_digest(pipe) != digest
    pipe.text_encoder.disable_adapters()
    assert fingerprint.fingerprint_of(pipe) == plain and fingerprint.features_digest(pipe) == digest
    lora(pipe.unet, ["attn2.to_k"])
    assert fingerprint.fingerprint_of(pipe).distance(plain) > 0
    drawn = weights_digest(pipeline.of(pipe))
    pipe.unet.set_adapters(["style"], [0.5])
    assert weights_digest(pipeline.of(pipe)) != drawn


def test_what_attached_concepts_change_is_not_the_base_but_is_in_the_features():
    pipe = pico_sd()
    plain, digest = fingerprint.fingerprint_of(pipe), fingerprint.features_digest(pipe)
    install_on(pipe, pico_concept(pipe, text_rank=2).delta)
    assert fingerprint.fingerprint_of(pipe) == plain and fingerprint.features_digest(pipe) != digest
    uninstall_from(pipe)
    assert fingerprint.features_digest(pipe) == digest


def test_a_tokenizer_that_reads_in_another_way_has_other_features():
    pipe = pico_sd()
    digest = fingerprint.features_digest(pipe)
    pipe.tokenizer.add_tokens("<x>")
    assert fingerprint.features_digest(pipe) == digest
    pipe.tokenizer.model_max_length = 20
    assert fingerprint.features_digest(pipe) != digest


def test_adapters_that_make_it_another_base_are_named():
    concept, pipe = pico_concept(pico_sd()), pico_sd()
    lora(pipe.text_encoder, ["q_proj"])
    with pytest.warns(UserWarning, match="text encoders differ by .*, with the adapters style on it"):
        attach(pipe, concept).detach()
    pipe = pico_sd()
    lora(pipe.text_encoder, ["q_proj"], size=5.0)
    with pytest.raises(BaseMismatch, match="the adapters style take .* away.*unload_lora_weights"):
        attach(pipe, concept)


def refuse(*_):
    raise ConceptError("refused at the last moment")


@pytest.mark.parametrize("refused", [True, False])
def test_a_lora_on_the_text_encoder_does_not_change_later_merges(refused):
    registry, pair = (
        Registry(),
        (pico_concept(pico_sd()), pico_concept(pico_sd(), "moongate", "gate", seed=1)),
    )
    wanted = compose(*pair, base=pipeline.of(pico_sd()), registry=Registry()).concept.to_bytes()
    with registry.index.writing() as conn:
        conn.execute("delete from assets")
    pipe = pico_sd()
    lora(pipe.text_encoder, ["q_proj", "v_proj"])
    if refused:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attach_steps, "install_delta", refuse)
            with pytest.raises(ConceptError, match="refused"):
                attach(pipe, *pair, registry=registry)
    else:
        with pytest.warns(UserWarning, match="text encoders differ"):
            attach(pipe, *pair, registry=registry).detach()
    assert compose(*pair, base=pipeline.of(pico_sd()), registry=registry).concept.to_bytes() == wanted


def test_rows_of_another_text_encoder_are_found_anew():
    pipe = pico_sd()
    here = pipeline.of(pipe)
    metric = caption_statistics.statistics_of(here, texts=captions.captions("any")[:30]).factor
    concept = pico_concept(pipe)
    rows = concept_rows.constraint_rows(concept, here, metric).float()
    known = dataclasses.replace(concept, rows=rows)
    assert torch.equal(concept_rows.constraint_rows(known, here, metric), rows.double())
    lora(pipe.text_encoder, ["q_proj"])
    again = concept_rows.constraint_rows(known, here, metric)
    assert not torch.allclose(again[: len(rows)], rows[: len(again)].double(), atol=1e-4)


def test_learning_on_a_base_with_adapters_is_told():
    base = pipeline.of(pico_sd(), "pico")
    assert pipeline.adapters_notice(base, "my_cat") is None
    lora(base.pipe.unet, ["ff.net.0.proj"])
    assert "pico carries the adapters style while my_cat is learned" in pipeline.adapters_notice(
        base, "my_cat"
    )
    lora(base.pipe.text_encoder, ["q_proj"])
    assert pipeline.refreshed(base).fingerprint.text_exact != base.fingerprint.text_exact
