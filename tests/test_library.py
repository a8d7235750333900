"""Files of other programs on this machine: found where they lie, known again, listed, taken in."""

import hashlib
import json
import os

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from conceptkit.cli.main import main
from conceptkit.errors import ConceptError, UnknownConcept
from conceptkit.formats.kohya import lora
from conceptkit.registry.library import files as library_files
from conceptkit.registry.library.describe import describe
from conceptkit.registry.library.files import Library
from conceptkit.registry.store import Registry
from tests import foreign
from tests.commands import run
from tests.tiny import pico_concept, pico_sd, pico_sdxl, save


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    """An SDXL LoRA, one of SD 1 twice, an embedding, a pickle, a half-copied file, and a text."""
    place = tmp_path / "loras"
    (place / "people").mkdir(parents=True)
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    xl = {f"{key}.lora_down.weight": torch.ones(2, 2048), f"{key}.lora_up.weight": torch.ones(640, 2)}
    save_file(xl, place / "ink.safetensors", {"modelspec.trigger_phrase": "ink drawing"})
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    one = {f"{key}.lora_down.weight": torch.ones(2, 768), f"{key}.lora_up.weight": torch.ones(320, 2)}
    save_file(
        one, place / "people" / "rex.safetensors", {"ss_tag_frequency": '{"5_ohwx dog": {"ohwx dog": 5}}'}
    )
    save_file(one, place / "rex_copy.safetensors", {"note": "another header"})
    save_file({"emb_params": torch.ones(2, 768)}, place / "toy.safetensors")
    torch.save({"<x>": torch.ones(3)}, place / "old.pt")
    whole = (place / "ink.safetensors").read_bytes()
    (place / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (place / "readme.txt").write_text("no weights")
    Image.new("RGB", (4, 4), "red").save(place / "ink.preview.png")
    return place


def test_a_scan_tells_what_the_files_are(folder, home):
    with Library() as library:
        done = library.scan(folder)
        found = {one.name: one for one in library.search()}
    assert (done.files, done.new, done.duplicates) == (6, 6, 1)
    assert "half.safetensors is no whole file" in done.problems[0] and len(done.problems) == 1
    told = {name: (one.about.kind, one.about.family) for name, one in found.items()}
    assert told == {
        "ink": ("LoRA", "sdxl"),
        "rex": ("LoRA", "sd1"),
        "rex_copy": ("LoRA", "sd1"),
        "toy": ("embedding", "sd1"),
        "old": ("pickle", None),
        "half": ("damaged", None),
    }
    assert found["ink"].about.words == ("ink drawing",) and found["ink"].about.preview == "ink.preview.png"
    assert found["rex"].about.words[0] == "ohwx dog"
    data = (folder / "ink.safetensors").read_bytes()
    assert found["ink"].about.sha256 == hashlib.sha256(data).hexdigest()
    assert found["ink"].about.autov2 == found["ink"].about.sha256[:10].upper()


def test_the_hash_of_the_tensors_is_the_one_in_headers(tmp_path):
    data = lora(pico_concept(pico_sd()), "my_dog")
    (tmp_path / "x.safetensors").write_bytes(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert describe(tmp_path / "x.safetensors").tensors == header["__metadata__"]["sshs_model_hash"]


def test_a_second_scan_reads_nothing_and_a_moved_file_keeps_its_tags(folder, home, monkeypatch):
    read = []
    monkeypatch.setattr(library_files, "describe", lambda path: (read.append(path.name), describe(path))[1])
    with Library() as library:
        library.scan(folder)
        assert len(read) == 6
        library.tag([library.get("rex")], ["pets"])
        read.clear()
        assert library.scan(folder).new == 0 and not read
        (folder / "people" / "rex.safetensors").rename(folder / "dog.safetensors")
        done = library.scan(folder)
        assert (done.moved, done.new, done.gone) == (1, 0, 0) and read == ["dog.safetensors"]
        assert library.get("dog").tags == ("pets",)
        (folder / "toy.safetensors").unlink()
        assert library.scan(folder).gone == 1
        with pytest.raises(UnknownConcept, match="scan its folder"):
            library.get("toy")


def test_a_scan_that_is_stopped_goes_on(folder, home, monkeypatch):
    monkeypatch.setattr(library_files, "SAVED_EVERY", 2)
    read = []

    def stopped(path):
        read.append(path.name)
        if len(read) == 4:
            raise KeyboardInterrupt
        return describe(path)

    monkeypatch.setattr(library_files, "describe", stopped)
    with Library() as library, pytest.raises(KeyboardInterrupt):
        library.scan(folder)
    with Library() as library:
        assert library.scan(folder).new == 4 and len(read) == 8


def test_files_of_one_name_are_told_apart_by_their_paths(folder, home):
    save_file({"emb_params": torch.zeros(1, 768)}, folder / "people" / "ink.safetensors")
    with Library() as library:
        library.scan(folder)
        with pytest.raises(ConceptError, match="2 files are called ink: .*name one by its path"):
            library.get("ink")
        assert library.get(str(folder / "people" / "ink.safetensors")).about.kind == "embedding"
        assert library.get(library.get(str(folder / "ink.safetensors")).about.autov2).about.kind == "LoRA"


@pytest.mark.slow
def test_thirty_thousand_files_in_one_folder_are_listed(tmp_path, home, monkeypatch):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(30_000):
        os.close(os.open(many / f"{number}.pt", os.O_CREAT | os.O_WRONLY))
    empty = describe(many / "0.pt")
    monkeypatch.setattr(library_files, "describe", lambda path: empty)
    ticks = []
    with Library() as library:
        assert library.scan(many, lambda done, total: ticks.append((done, total))).files == 30_000
    assert ticks[-1] == (30_000, 30_000)


def test_commands_scan_list_tag_and_take_in(folder, home, tmp_path):
    assert "6 files" in run("scan", folder)
    assert json.loads(run("library", "--json", "--sort", "size"))[0]["name"] == "ink"
    run("library", "rex", "--add-tag", "pets")
    tagged = json.loads(run("library", "--tag", "pets", "--json"))
    assert {one["name"] for one in tagged} == {"rex", "rex_copy"}
    twice = json.loads(run("library", "--duplicates", "--json"))
    assert {one["name"] for one in twice} == {"rex", "rex_copy"}
    tensors, _ = foreign.lora(pico_sd())
    save_file(tensors, folder / "oil.safetensors", {"modelspec.trigger_phrase": "green chair"})
    Image.new("RGB", (4, 4), "red").save(folder / "oil.png")
    assert "1 new" in run("import", folder)
    base = save(pico_sd(), tmp_path / "base")
    assert "in prompts oil = green chair" in run("import", "oil", "--base", base)
    with Registry() as registry:
        assert registry.get("oil").preview and registry.get("oil").summary["method"] == "import"


def test_import_refuses_what_does_not_go_together(folder, home):
    many = CliRunner().invoke(main, ["import", "a.safetensors", "b.safetensors", "--name", "x"])
    assert many.exit_code == 2 and "are for one FILE" in many.stderr
    pickle = CliRunner().invoke(main, ["import", str(folder / "half.safetensors")])
    assert pickle.exit_code == 2 and "copied by half" in pickle.stderr


def test_an_sdxl_concept_goes_into_the_folders_of_comfyui_and_comes_back(home, tmp_path):
    pipe = pico_sdxl()
    base = save(pipe, tmp_path / "base")
    concept = pico_concept(pipe)
    with Registry() as registry:
        registry.add("my_dog", concept.to_bytes(), concept.summary())
    (tmp_path / "ComfyUI").mkdir()
    told = run("export", "my_dog", "--for", "comfyui", "--to", tmp_path / "ComfyUI")
    assert "models/loras/my_dog.safetensors" in told
    lora_file = tmp_path / "ComfyUI" / "models" / "loras" / "my_dog.safetensors"
    with Registry() as registry:
        registry.remove("my_dog")
    assert "Added my_dog@1" in run("import", lora_file, "--base", base)
