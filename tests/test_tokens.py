"""New tokens come and go without a trace, and train without moving the rest."""

import pytest
import torch

from conceptkit.base import added_tokens, conditioning, rare_tokens, text_features
from conceptkit.base.added_tokens import WiderTable, add_tokens
from conceptkit.errors import BaseMismatch, ConceptError
from tests.language_model_tiny import pico_qwen_image, pico_sana
from tests.tiny import draw, pico_sd, pico_sdxl, snapshot
from tests.transformers_tiny import pico_flux, pico_sd3

BUILDS = pytest.mark.parametrize("build", [pico_sd, pico_sdxl])


def rows(pipe, k=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in text_features.encoders(pipe)]
    return tuple(torch.randn(k, width, generator=generator) for width in widths)


@BUILDS
def test_added_and_removed_bit_for_bit(build):
    pipe = build()
    before = snapshot(pipe)
    tokens = add_tokens(pipe, {"<my_dog>": rows(pipe), "<gate>": rows(pipe, 3)})
    assert len(pipe.tokenizer) == before["tokenizers"]["tokenizer"][1] + 4
    assert pipe.tokenizer.tokenize("a <my_dog> dog") == ["a</w>", "<my_dog>", "dog</w>"]
    assert draw(pipe, "a <my_dog> dog").numpy().tobytes() != before["picture"]
    assert draw(pipe, "a photo of a dog").numpy().tobytes() == before["picture"]
    tokens.remove()
    tokens.remove()
    assert snapshot(pipe) == before


@BUILDS
def test_each_vector_is_read_in_its_place(build):
    pipe = build()
    values = {"<a>": rows(pipe, 2, seed=1), "<b>": rows(pipe, seed=2)}
    with add_tokens(pipe, values) as tokens:
        for i, (tokenizer, encoder) in enumerate(text_features.encoders(pipe)):
            prompt = pipe.maybe_convert_prompt("<b> <a> dog", tokenizer)
            ids = torch.tensor(tokenizer(prompt).input_ids)
            table = encoder.get_input_embeddings()
            assert torch.equal(table(ids)[1:4], torch.cat([values["<b>"][i], values["<a>"][i]]))
            assert torch.equal(table(ids)[[0, 4, 5]], table.weight[ids[[0, 4, 5]]])
        read = tokens.read()
        assert all(
            torch.equal(a, b) for name in values for a, b in zip(values[name], read[name], strict=True)
        )


@pytest.mark.parametrize("build", [pico_sd, pico_sd3, pico_flux, pico_sana, pico_qwen_image])
def test_a_token_that_begins_as_a_word_reads_as_the_word_does(build):
    """Also where a vocabulary has the space before a word in the word, as T5's and language models' have."""
    pipe = build()
    (rare,) = rare_tokens.choose(pipe, [], 0)
    pairs = zip(text_features.encoders(pipe), rare.ids, strict=True)
    copied = tuple(encoder.get_input_embeddings().weight[[number]] for (_, encoder), number in pairs)
    with torch.no_grad(), add_tokens(pipe, {"<x>": copied}):
        own, word = conditioning.encode(pipe, ["a photo of <x> dog", f"a photo of {rare.text} dog"]).hidden
    assert torch.allclose(own, word, atol=1e-4) and own.std() > 0.1


def test_the_base_table_is_neither_copied_nor_moved_by_training():
    pipe = pico_sd()
    table = pipe.text_encoder.get_input_embeddings()
    kept = table.weight.detach().clone()
    with add_tokens(pipe, {"<x>": rows(pipe)}) as tokens:
        wider = pipe.text_encoder.get_input_embeddings()
        assert isinstance(wider, WiderTable) and wider.weight.data_ptr() == table.weight.data_ptr()
        pipe.text_encoder.requires_grad_(False)
        (row,) = tokens.rows
        row.requires_grad_(True)
        first = row.detach().clone()
        optimiser = torch.optim.AdamW([row], lr=0.1, weight_decay=0.1)
        ids = torch.tensor([pipe.tokenizer("a <x> dog").input_ids])
        pipe.text_encoder(ids).last_hidden_state.square().sum().backward()
        optimiser.step()
        assert not torch.equal(tokens.read()["<x>"][0], first)
    assert torch.equal(table.weight, kept) and pipe.text_encoder.get_input_embeddings() is table


def test_a_move_to_another_precision_in_between():
    pipe = pico_sd()
    tokens = add_tokens(pipe, {"<x>": rows(pipe)})
    pipe.to(torch.float64)
    tokens.remove()
    assert {parameter.dtype for parameter in pipe.text_encoder.parameters()} == {torch.float64}


def test_names_are_exact():
    pipe = pico_sd()
    with add_tokens(pipe, {"<Dog>": rows(pipe, seed=1), "<dog>": rows(pipe, seed=2)}):
        assert pipe.tokenizer.tokenize("<Dog><dog>") == ["<Dog>", "<dog>"]


def test_pooling_finds_the_end_of_text_whatever_its_id():
    pipe = pico_sdxl()
    text_model = pipe.text_encoder_2.text_model
    text_model.eos_token_id = 2  # what the old configs say
    plain = pipe.encode_prompt(prompt="a dog")[2]
    before = snapshot(pipe)
    with add_tokens(pipe, {"<x>": rows(pipe)}):
        assert torch.equal(pipe.encode_prompt(prompt="a dog")[2], plain)
        ids = pipe.tokenizer_2("a <x>", return_tensors="pt").input_ids
        output = text_model(ids)
        assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, -1])
    assert snapshot(pipe) == before


@BUILDS
def test_what_does_not_fit_changes_nothing(build):
    pipe = build()
    before = snapshot(pipe)
    with pytest.raises(BaseMismatch, match="width 7"):
        add_tokens(pipe, {"<x>": (torch.zeros(1, 7),)})
    with pytest.raises(ConceptError, match="already has a token dog</w>"):
        add_tokens(pipe, {"dog</w>": rows(pipe)})
    with pytest.raises(ConceptError, match="already has a token <x>_1"):
        add_tokens(pipe, {"<x>": rows(pipe, 2), "<x>_1": rows(pipe)})
    assert snapshot(pipe) == before


def test_a_failure_half_way_changes_nothing(monkeypatch):
    pipe = pico_sdxl()
    before = snapshot(pipe)
    second, original = pipe.text_encoder_2.get_input_embeddings(), added_tokens.WiderTable

    def failing(table, *more, **options):
        if table is second:
            raise TypeError
        return original(table, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(added_tokens, "WiderTable", failing)
        with pytest.raises(TypeError):
            add_tokens(pipe, {"<x>": rows(pipe)})
    assert snapshot(pipe) == before


def test_a_textual_inversion_loaded_on_top_works_and_leaves_with_them():
    pipe = pico_sd()
    before = snapshot(pipe)
    (x,), y = rows(pipe), torch.randn(32)
    with add_tokens(pipe, {"<x>": (x,)}) as tokens:
        pipe.load_textual_inversion(y, token="<y>")
        table = pipe.text_encoder.get_input_embeddings()
        ids = torch.tensor(pipe.tokenizer("<y> <x> dog").input_ids)
        assert torch.equal(table(ids)[1], y) and torch.equal(table(ids)[2], x[0])
        assert torch.equal(table(ids)[[0, 3, 4]], table.weight[ids[[0, 3, 4]]])
        assert tokens.intact
        pipe.unload_textual_inversion()
        assert not tokens.intact
    after = snapshot(pipe)
    assert {k: v for k, v in after.items() if k != "attributes"} == {
        k: v for k, v in before.items() if k != "attributes"
    }
