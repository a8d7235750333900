"""Files of other programs become concepts that add what those programs add, or an error says why not."""

import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from benchmarks.formats_fuzz import one_case, seeds
from conceptkit.base.pipeline import of
from conceptkit.concepts.concept import Concept, read
from conceptkit.errors import BadBlob, BaseMismatch, ConceptError, NameTaken, NoEffect
from conceptkit.formats.dialects import export
from conceptkit.formats.module_index import index_of
from conceptkit.formats.module_names import NAMES
from conceptkit.inference.attach import attach
from conceptkit.merging.compose import compose
from conceptkit.registry.store import Registry
from conceptkit.workflows.import_file import import_file
from tests import foreign
from tests.mutate_files import spoil_file
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, snapshot


@pytest.fixture
def registry(tmp_path):
    with Registry(tmp_path / "home") as store:
        yield store


@pytest.fixture(scope="module")
def pipe():
    return pico_sd()


def added(concept: Concept, like):
    return {name: concept.delta[name].dense().view_as(like[name]) for name in concept.delta}


def check(concept, expected):
    found = added(concept, expected)
    assert found.keys() == expected.keys()
    for name, matrix in expected.items():
        assert (found[name] - matrix).norm() <= 1e-5 * matrix.norm(), name


@pytest.mark.parametrize(
    "write",
    [
        foreign.lora,
        lambda pipe: foreign.lora(pipe, "peft"),
        lambda pipe: foreign.lora(pipe, "old"),
        lambda pipe: foreign.lora(pipe, convolution=True),
        lambda pipe: foreign.lora(pipe, "peft", convolution=True),
        foreign.loha,
        foreign.lokr,
        foreign.dora,
        lambda pipe: foreign.dora(pipe, rows=False),
    ],
    ids=["kohya", "peft", "old diffusers", "LoCon", "peft LoCon", "LoHa", "LoKr", "DoRA", "DoRA by columns"],
)
def test_adapters_add_what_their_programs_add(write, pipe, registry, tmp_path):
    tensors, expected = write(pipe)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "ink.safetensors")
    done = import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry)
    check(done.concept, expected)
    stored = read(registry, "ink")
    assert stored.words == {"ink": "ink"} and stored.recipe["family"] == "sd1"
    plain = {
        name: module.weight.detach().clone() for name, module in pipe.unet.named_modules() if name in expected
    }
    before = snapshot(pipe)
    with attach(pipe, done.concept):
        found = draw(pipe, "ink dog")
    assert snapshot(pipe) == before
    for name, weight in plain.items():
        pipe.unet.get_submodule(name).weight.data = weight + expected[name]
    try:
        wanted = draw(pipe, "ink dog")
    finally:
        for name, weight in plain.items():
            pipe.unet.get_submodule(name).weight.data = weight
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    assert (found - draw(pipe, "ink dog")).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("dialect", ["diffusers", "comfyui", "a1111", "kohya", "invokeai"])
def test_what_leaves_comes_back(dialect, family, registry, tmp_path):
    pipe = pico_sd() if family == "sd" else pico_sdxl()
    ours = pico_concept(pipe, rank=3, text_rank=2, vectors=2)
    paths = export(ours, tmp_path / "out", dialect=dialect)
    lora = next(
        path for path in paths if "lora" in path.as_posix().lower().removeprefix(str(tmp_path).lower())
    )
    back = import_file(lora, base=of(pipe), registry=registry).concept
    assert back.name == "my_dog" and back.words == ours.words and back.noun == "dog"
    assert back.base.same(ours.base) and back.delta.keys() == ours.delta.keys()
    for name, factors in ours.delta.items():
        assert (back.delta[name].dense() - factors.dense()).norm() <= 1e-6 * factors.dense().norm()
        assert back.delta[name].rank == factors.rank
    for token, rows in ours.tokens.items():
        assert all(map(torch.equal, back.tokens[token], rows))


def test_sdxl_is_read_in_both_namings_of_its_blocks(registry, tmp_path):
    pipe = pico_sdxl()
    weights = foreign.linear_maps(pipe)
    for style in ("diffusers", "checkpoint"):
        random, tensors, expected = foreign.Draw(), {}, {}
        for name, weight in weights.items():
            key = foreign.kohya(name) if style == "diffusers" else NAMES["sdxl"].place(name).key
            up, down = random(len(weight), 2), random(2, weight.shape[1])
            tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
            expected[name] = up @ down
        save_file(tensors, tmp_path / f"{style}.safetensors")
        check(
            import_file(tmp_path / f"{style}.safetensors", base=of(pipe), registry=registry).concept, expected
        )


def test_peft_folders_are_read_with_their_patterns(registry, tmp_path):
    pipe = pico_sd()
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_k", "to_v"], alpha_pattern={"attn2.to_v": 8})
    model = get_peft_model(pipe.unet, config)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn_like(value)
    model.save_pretrained(tmp_path / "ink")
    expected = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    check(import_file(tmp_path / "ink", base=of(pico_sd()), registry=registry).concept, expected)


def custom_diffusion(pipe, low_rank):
    random = foreign.Draw()
    expected = {}
    for name, weight in foreign.linear_maps(pipe, ("attn2.to_k", "attn2.to_v")).items():
        expected[name] = (
            random(len(weight), 2) @ random(2, weight.shape[1]) if low_rank else random(*weight.shape)
        )
    return expected


@pytest.mark.parametrize("form", ["safetensors", "bin", "adobe", "compressed"])
def test_custom_diffusion_becomes_a_delta_against_the_base(form, pipe, registry, tmp_path):
    expected = custom_diffusion(pipe, low_rank=form != "safetensors")
    weights = {name: pipe.unet.get_submodule(name).weight.detach() + own for name, own in expected.items()}
    token = foreign.Draw(9)(32)
    folder = tmp_path / "my_cat"
    folder.mkdir()
    if form in ("adobe", "compressed"):
        whole = {f"{name}.weight": w for name, w in weights.items()}
        if form == "compressed":
            whole = {}
            for name, own in expected.items():
                left, sizes, right = torch.linalg.svd(own, full_matrices=False)
                whole[f"{name}.weight"] = {"u": left[:, :2] * sizes[:2], "v": right[:2]}
        torch.save({"unet": whole, "modifier_token": {"<new1>": token}}, folder / "delta.bin")
    else:
        keys = {
            n.replace(".to_", ".processor.to_") + "_custom_diffusion.weight": w for n, w in weights.items()
        }
        file = folder / f"pytorch_custom_diffusion_weights.{form}"
        (torch.save if form == "bin" else save_file)(keys, file)
        (torch.save if form == "bin" else save_file)({"<new1>": token}, folder / f"<new1>.{form}")
    done = import_file(folder, base=of(pipe), registry=registry, class_noun="cat")
    check(done.concept, expected)
    assert done.concept.words == {"my_cat": "<my_cat> cat"}
    assert torch.equal(done.concept.tokens["<my_cat>"][0], token[None])
    assert done.concept.delta.rank <= (16 if form == "safetensors" else 2) * 2


def embeddings(form, rows, folder):
    file = folder / ("toy.pt" if form == "a1111" else "toy.bin" if form == "bin" else "toy.safetensors")
    if form == "a1111":
        told = {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": {"*": torch.nn.Parameter(rows[0])},
        }
        torch.save({**told, "name": "toy", "step": 500, "sd_checkpoint": None}, file)
    elif form == "bin":
        torch.save({"<cat-toy>": rows[0][0]}, file)
    elif form == "single":
        save_file({"<cat-toy>": rows[0]}, file)
    elif form == "two":
        save_file({"clip_l": rows[0], "clip_g": rows[1]}, file)
    else:
        save_file({"emb_params": rows[0]}, file)
    return file


@pytest.mark.parametrize("form", ["a1111", "bin", "single", "emb_params", "two"])
def test_embeddings_of_all_programs_are_tokens(form, registry, tmp_path):
    pipe = pico_sdxl() if form == "two" else pico_sd()
    random = foreign.Draw()
    rows = [random(1 if form == "bin" else 3, width) for width in foreign.widths(pipe)]
    concept = import_file(embeddings(form, rows, tmp_path), base=of(pipe), registry=registry).concept
    assert concept.words == {"toy": "<toy>"} and not concept.delta
    assert all(map(torch.equal, concept.tokens["<toy>"], rows))
    with attach(pipe, concept):
        assert (draw(pipe, "a toy") - draw(pipe, "a dog")).abs().max() > 1e-4


def test_a_bundled_embedding_comes_with_its_lora(pipe, registry, tmp_path):
    tensors, expected = foreign.lora(pipe)
    rows = foreign.Draw(3)(2, 32)
    save_file({**tensors, "bundle_emb.inky.string_to_param.*": rows}, tmp_path / "ink.safetensors")
    concept = import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry).concept
    check(concept, expected)
    assert concept.words == {"ink": "<ink>"} and torch.equal(concept.tokens["<ink>"][0], rows)


def test_mix_of_show_comes_in_and_says_what_it_loses(pipe, registry, tmp_path):
    tensors, expected = {}, {}
    random = foreign.Draw()
    for name, weight in foreign.linear_maps(pipe).items():
        up, down = random(len(weight), 2), random(2, weight.shape[1])
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        expected[name] = up @ down
    layers = random(16, 32)
    told = {"unet": tensors, "text_encoder": {}, "new_concept_embedding": {"<hina1>": layers}}
    torch.save({"params": told}, tmp_path / "hina.pth")
    done = import_file(tmp_path / "hina.pth", base=of(pipe), registry=registry)
    check(done.concept, expected)
    assert torch.allclose(done.concept.tokens["<hina>"][0], layers.mean(dim=0, keepdim=True))
    assert "for each of 16 layers" in " ".join(done.notices)


def test_the_words_of_a_lora_come_from_its_header_or_from_beside_it(pipe, registry, tmp_path):
    tensors, _ = foreign.lora(pipe)
    tags = json.dumps({"10_ohwx dog": {"ohwx dog": 10, "snow": 3}})
    for name, metadata, beside, word in (
        ("one", {"modelspec.trigger_phrase": "red ink", "ss_tag_frequency": tags}, None, "red ink"),
        ("two", {"ss_tag_frequency": tags}, None, "ohwx dog"),
        ("three", {"ss_tag_frequency": tags}, {"trainedWords": ["big chair"]}, "big chair"),
        ("night_tree", {}, None, "night tree"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata)
        if beside:
            (tmp_path / f"{name}.civitai.info").write_text(json.dumps(beside))
        done = import_file(tmp_path / f"{name}.safetensors", base=of(pipe), registry=registry)
        assert done.concept.words == {name: word}
        assert word in done.notices[-1]
    again = import_file(
        tmp_path / "one.safetensors", base=of(pipe), registry=registry, name="four", trigger="small fish"
    )
    assert again.concept.words == {"four": "small fish"} and not again.notices


def test_a_gated_lora_acts_beside_keys_and_values_only_where_its_words_are(pipe, registry, tmp_path):
    tensors, _ = foreign.lora(pipe)
    own = {key: tensor for key, tensor in tensors.items() if "ff_net" in key}
    save_file(own, tmp_path / "ink.safetensors")
    plain = {text: draw(pipe, text) for text in ("red ink dog", "a dog")}
    options = {"base": of(pipe), "registry": registry, "trigger": "red ink"}
    for gated in (True, False):
        concept = import_file(
            tmp_path / "ink.safetensors", name=f"ink{int(gated)}", gated=gated, **options
        ).concept
        with attach(pipe, concept):
            assert (draw(pipe, "red ink dog") - plain["red ink dog"]).abs().max() > 1e-3
            assert torch.equal(draw(pipe, "a dog"), plain["a dog"]) is gated


def test_theirs_and_ours_compose(pipe, registry, tmp_path):
    for number, name in enumerate(("ink", "oil")):
        tensors, _ = foreign.lora(pipe, seed=number, convolution=not number)
        save_file(tensors, tmp_path / f"{name}.safetensors")
        options = {"trigger": {"ink": "blue candle", "oil": "green chair"}[name], "gated": bool(number)}
        import_file(tmp_path / f"{name}.safetensors", base=of(pipe), registry=registry, **options)
    ours = pico_concept(pipe)
    merge = compose("ink", "oil", ours, base=of(pipe), registry=registry)
    assert set(merge.concept.words) == {"ink", "oil", "my_dog"}
    before = snapshot(pipe)
    with attach(pipe, merge):
        assert (draw(pipe, "ink and my_dog") - draw(pipe, "oil")).abs().max() > 1e-3
    assert snapshot(pipe) == before
    back = Concept.from_bytes(merge.concept.to_bytes())
    paths = export(back, tmp_path / "out", dialect="kohya")
    assert any(load_file(paths[0])[key].ndim == 4 for key in load_file(paths[0]) if "conv1" in key)


class Code:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_pickle_with_code_stays_closed(pipe, registry, tmp_path, capsys):
    (tmp_path / "bad.bin").write_bytes(pickle.dumps({"a": Code()}))
    torch.save({"a": Code()}, tmp_path / "bad.pt")
    for name in ("bad.bin", "bad.pt"):
        with pytest.raises(BadBlob, match="could run code; it stays closed"):
            import_file(tmp_path / name, base=of(pipe), registry=registry)
    assert "ran" not in capsys.readouterr().out and not registry.list()


def test_a_lora_of_another_family_names_both(pipe, registry, tmp_path):
    tensors = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(2, 2048),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(640, 2),
    }
    save_file(tensors, tmp_path / "xl.safetensors")
    with pytest.raises(BaseMismatch, match="is for SDXL, and .* is of the family Stable Diffusion 1"):
        import_file(tmp_path / "xl.safetensors", base=of(pipe), registry=registry)
    with pytest.raises(BaseMismatch, match="is for SDXL; name a base of that family with --base"):
        import_file(tmp_path / "xl.safetensors", registry=registry)


def test_a_half_copied_file_is_no_concept(pipe, registry, tmp_path):
    tensors, _ = foreign.lora(pipe)
    save_file(tensors, tmp_path / "ink.safetensors")
    torch.save(tensors, tmp_path / "ink.bin")
    for name in ("ink.safetensors", "ink.bin"):
        data = (tmp_path / name).read_bytes()
        for size in (0, 4, 100, len(data) // 2, len(data) - 1):
            (tmp_path / name).write_bytes(data[:size])
            with pytest.raises(BadBlob, match="by half|could run code|damaged"):
                import_file(tmp_path / name, base=of(pipe), registry=registry)
    assert not registry.list()


def test_nothing_is_matched_in_part(pipe, registry, tmp_path):
    tensors, _ = foreign.lora(pipe)
    odd = {
        "lora_unet_no_such_map.lora_up.weight": torch.ones(4, 1),
        "lora_unet_no_such_map.lora_down.weight": torch.ones(1, 4),
    }
    save_file({**tensors, **odd}, tmp_path / "ink.safetensors")
    with pytest.raises(
        BadBlob, match=r"1 of the \d+ keys .*lora_unet_no_such_map.*nothing of it was taken in"
    ):
        import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry)
    save_file({**tensors, "unet.norm.w_norm": torch.ones(4)}, tmp_path / "ink.safetensors")
    with pytest.raises(BadBlob, match="unet.norm.w_norm"):
        import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry)
    half = {key: tensor for key, tensor in tensors.items() if not key.endswith("lora_up.weight")}
    save_file(half, tmp_path / "ink.safetensors")
    with pytest.raises(BadBlob, match="no whole module"):
        import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry)
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    twice = {**tensors, key.replace("lora_up.weight", "lora_B.weight"): tensors[key] + 1}
    save_file(twice, tmp_path / "ink.safetensors")
    with pytest.raises(BadBlob, match="say the same of a map"):
        import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry)
    core, _ = foreign.loha(pipe)
    save_file({k: t for k, t in core.items() if not k.endswith("hada_t2")}, tmp_path / "ink.safetensors")
    with pytest.raises(BadBlob, match="no whole module"):
        import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry)
    save_file({key: torch.zeros_like(t) for key, t in tensors.items()}, tmp_path / "ink.safetensors")
    with pytest.raises(NoEffect, match="would change nothing"):
        import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry)
    assert not registry.list()


def test_a_name_that_is_taken_is_refused_before_anything(pipe, registry, tmp_path):
    tensors, _ = foreign.lora(pipe)
    save_file(tensors, tmp_path / "ink.safetensors")
    options = {"base": of(pipe), "registry": registry}
    import_file(tmp_path / "ink.safetensors", **options)
    with pytest.raises(NameTaken):
        import_file(tmp_path / "ink.safetensors", **options)
    assert import_file(tmp_path / "ink.safetensors", new_version=True, **options).entry.ref == "ink@2"


def test_a_token_that_the_tokenizer_has_is_refused(registry, tmp_path):
    pipe = pico_sd()
    save_file({"emb_params": foreign.Draw()(1, 32)}, tmp_path / "toy.safetensors")
    concept = import_file(tmp_path / "toy.safetensors", base=of(pipe), registry=registry).concept
    pipe.load_textual_inversion(foreign.Draw()(32), token="<toy>")
    with pytest.raises(ConceptError, match="<toy>"):
        attach(pipe, concept)


def test_an_embedding_of_another_width_is_refused(pipe, registry, tmp_path):
    save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "toy.safetensors")
    with pytest.raises(BaseMismatch, match="vectors of 768 values, and the text encoders .* read 32"):
        import_file(tmp_path / "toy.safetensors", base=of(pipe), registry=registry)


def test_numbers_that_are_no_weights_are_refused(pipe, registry, tmp_path):
    tensors, _ = foreign.lora(pipe)
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[key][0, 0] = 1e30
    save_file(tensors, tmp_path / "ink.safetensors")
    with pytest.raises(BadBlob, match="adds numbers up to .* no weights"):
        import_file(tmp_path / "ink.safetensors", base=of(pipe), registry=registry)


def test_spoiled_files_end_in_a_sentence_or_in_a_concept(tmp_path, pipe):
    base, dice = of(pipe), random.Random(1)
    maps, given = set(index_of(base).maps), seeds(tmp_path)
    fates = set()
    for name in sorted(given):
        for _ in range(4):
            file = tmp_path / f"case{Path(name).suffix}"
            file.write_bytes(spoil_file(given[name], dice))
            fates.add(one_case(base, maps, file))
    assert fates == {"read", "refused"}
