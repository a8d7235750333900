"""Where bases are loaded from, in which precision, and what is said when that cannot be."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import diffusers
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import save_file

import conceptkit as ck
from conceptkit.base import loading, pipeline, quantization
from conceptkit.base.load_options import LoadOptions
from conceptkit.data import photos
from conceptkit.errors import BadBase, BadDevice, BadRecipe
from conceptkit.workflows.add_settings import AddSettings
from tests import projected_tiny, tiny
from tests.learning import SEEDS, TINY, draw_photos, teach
from tests.original_layout import save_checkpoint


@pytest.fixture(scope="module")
def pipe():
    return tiny.pico_sd()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    return tiny.save(pipe, tmp_path_factory.mktemp("base") / "pico")


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    """The folder of a base without its weights."""
    made = tmp_path_factory.mktemp("config") / "pico"
    shutil.copytree(folder, made, ignore=shutil.ignore_patterns("*.safetensors"))
    return made


def same(loaded, pipe, dtype=torch.float32):
    """All weights of a pipeline are those of another, in some precision."""
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(loaded, name).state_dict(), getattr(pipe, name).state_dict()
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key].to(dtype)) for key in ours), name


# one file


def test_a_checkpoint_with_its_configuration_beside_it(pipe, config, tmp_path, monkeypatch):
    file = save_checkpoint(pipe, tmp_path / "my model.safetensors")
    shutil.copytree(config, tmp_path / "my model")
    loaded = pipeline.load(str(file))
    same(loaded.pipe, pipe)
    assert loaded.name == str(file.resolve())
    assert loaded.fingerprint == pipeline.of(pipe).fingerprint
    assert torch.equal(tiny.draw(loaded.pipe, "a dog"), tiny.draw(pipe, "a dog"))
    monkeypatch.chdir(tmp_path)
    half = pipeline.load("my model.safetensors", dtype="fp16")
    assert (half.name, half.dtype) == (loaded.name, torch.float16)
    same(half.pipe, pipe, torch.float16)


def test_a_checkpoint_whose_configuration_the_hub_gave_before(pipe, config, tmp_path, monkeypatch):
    file = save_checkpoint(pipe, tmp_path / "model.safetensors")
    asked = []

    def stored(repository, *, local_files_only):
        asked.append((repository, local_files_only))
        return str(config)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stored)
    same(pipeline.load(str(file)).pipe, pipe)
    assert asked == [("stable-diffusion-v1-5/stable-diffusion-v1-5", True)]


def test_a_checkpoint_without_a_configuration_says_how_to_get_it(pipe, tmp_path):
    file = save_checkpoint(pipe, tmp_path / "model.safetensors")
    with pytest.raises(
        BadBase, match="run `hf download stable-diffusion-v1-5/stable-diff.*once, or put"
    ) as told:
        pipeline.load(str(file))
    assert str(tmp_path / "model") in str(told.value) and "\n" not in str(told.value)


def test_files_that_are_no_checkpoint_of_a_base(pipe, config, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"some.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(BadBase, match="no family that is known; put.*docs/how-to/add-a-base.md"):
        pipeline.load(str(other))
    shutil.copytree(config, tmp_path / "other")
    with pytest.raises(BadBase, match="cannot be read with the configuration in") as told:
        pipeline.load(str(other))
    assert "\n" not in str(told.value)
    (tmp_path / "cut.safetensors").write_bytes(
        save_checkpoint(pipe, tmp_path / "x.safetensors").read_bytes()[:99]
    )
    with pytest.raises(BadBase, match="is damaged or no .safetensors file; download it again"):
        pipeline.load(str(tmp_path / "cut.safetensors"))
    (tmp_path / "old.ckpt").write_bytes(b"")
    with pytest.raises(BadBase, match="may run code when it is read.* give the same model as .safetensors"):
        pipeline.load(str(tmp_path / "old.ckpt"))
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(BadBase, match="is no checkpoint; give a .safetensors file or a folder"):
        pipeline.load(str(tmp_path / "photo.png"))
    with pytest.raises(BadBase, match="There is no base 'models/gone.safetensors'"):
        pipeline.load("models/gone.safetensors")


# families


def test_an_unknown_family_is_named_before_its_weights_are_read(config, tmp_path):
    other = tmp_path / "odd"
    shutil.copytree(config, other)
    index = json.loads((other / "model_index.json").read_text())
    index["unet"][1] = "StableCascadeUNet"
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadBase, match="a StableCascadeUNet, is of no family.*docs/how-to/add-a-base.md"):
        pipeline.load(str(other))


def test_a_library_that_a_family_needs_is_named_with_how_to_install_it(config, tmp_path, monkeypatch):
    """diffusers has a stand-in for such a pipeline, which says what it lacks."""
    other = tmp_path / "kolors"
    shutil.copytree(config, other)
    index = json.loads((other / "model_index.json").read_text())
    index["_class_name"] = "KolorsPipeline"
    (other / "model_index.json").write_text(json.dumps(index))
    lacking = type("KolorsPipeline", (), {"_backends": ["torch", "no_such_library"]})
    monkeypatch.setattr(diffusers, "KolorsPipeline", lacking)
    with pytest.raises(BadBase, match="KolorsPipeline needs no_such_library.*pip install no_such_library"):
        pipeline.load(str(other))


def test_a_pipeline_without_an_autoencoder_is_read(tmp_path):
    projected_tiny.pico_if().save_pretrained(tmp_path / "if")
    base = pipeline.load(str(tmp_path / "if"))
    assert base.family.name == "if" and base.architecture.picture_size(base.pipe) == 16


# the hub


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            GatedRepoError,
            "owner/model is gated: agree.*huggingface.co/owner/model, log in with `hf auth login`",
        ),
        (
            RepositoryNotFoundError,
            "no model 'owner/model', or it is private; check the id, or log in with `hf auth",
        ),
    ],
)
def test_a_model_that_the_hub_does_not_hand_out(monkeypatch, kind, sentence):
    def refuse(*_, **__):
        response = SimpleNamespace(headers={}, request=None, status_code=403)
        raise kind("no", response=response)

    monkeypatch.setattr(diffusers.configuration_utils, "hf_hub_download", refuse)
    with pytest.raises(BadBase, match=sentence) as told:
        pipeline.load("owner/model")
    assert "\n" not in str(told.value)


# precision, quantisation, offload


@pytest.mark.parametrize(("name", "dtype"), list(loading.DTYPES.items()))
def test_precisions_by_name_and_by_type(folder, pipe, name, dtype):
    for given in (name, dtype):
        base = pipeline.load(str(folder), dtype=given)
        assert base.dtype == dtype
        same(base.pipe, pipe, dtype)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"dtype": "fp8"}, BadRecipe, "dtype = 'fp8' is unknown; choose one of fp32, bf16, fp16"),
        ({"dtype": torch.float64}, BadRecipe, "dtype = 'torch.float64' is unknown"),
        ({"quantization": "2bit"}, BadRecipe, "choose one of bnb-8bit, bnb-4bit, torchao-int8"),
        ({"offload": "disk"}, BadRecipe, "offload = 'disk' is unknown; choose one of model, group"),
        ({"offload": "model"}, BadDevice, "offload = model keeps parts on the CPU while a GPU works"),
        ({"offload": "group", "device": "cpu"}, BadDevice, "and the device here is the CPU; leave it out"),
    ],
)
def test_what_a_machine_cannot_do_is_one_sentence(folder, options, error, sentence):
    with pytest.raises(error, match=sentence) as told:
        pipeline.load(str(folder), **options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["bnb-4bit", "bnb-8bit", "torchao-int8"])
def test_quantisation_needs_its_package_and_a_gpu(folder, monkeypatch, name):
    package = quantization.PACKAGES[name.partition("-")[0]]
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BadRecipe, match=f"quantization = {name} needs {package}; run pip install {package}"):
        pipeline.load(str(folder), quantization=name)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: "there")
    if name.startswith("bnb"):
        with pytest.raises(BadDevice, match="needs a GPU of Nvidia or AMD, and the device is cpu"):
            pipeline.load(str(folder), quantization=name, device="cpu")


def test_maps_that_read_text_are_left_out_of_a_quantisation(folder, pipe, monkeypatch):
    """diffusers' loader is given its own configuration, for the denoiser, with the text site as it is."""
    seen = {}

    class Config:
        def __init__(self, **options):
            seen["options"] = options

    def from_pretrained(path, **options):
        seen.update(options)
        return pipe

    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: "there")
    monkeypatch.setattr(diffusers, "BitsAndBytesConfig", Config)
    monkeypatch.setattr(diffusers.quantizers.PipelineQuantizationConfig, "post_init", lambda self: None)
    monkeypatch.setattr(diffusers.AutoPipelineForText2Image, "from_pretrained", from_pretrained)
    monkeypatch.setattr(loading, "_placed", lambda pipe, *_: pipe)
    source = loading.locate(str(folder))
    loading.read(source, LoadOptions("bf16", "bnb-4bit"), "cuda")
    assert list(seen["quantization_config"].quant_mapping) == ["unet"]
    assert seen["options"]["load_in_4bit"] and seen["options"]["bnb_4bit_compute_dtype"] == torch.bfloat16
    assert seen["options"]["llm_int8_skip_modules"] == list(pipeline.of(pipe).text_site)
    assert seen["dtype"] == torch.bfloat16


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offload_is_diffusers_own(folder, monkeypatch, offload):
    calls = []

    def record(name):
        return lambda self, **options: calls.append((name, options))

    for name in ("enable_model_cpu_offload", "enable_group_offload"):
        monkeypatch.setattr(diffusers.DiffusionPipeline, name, record(name))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", record("to"))
    pipeline.load(str(folder), device="cuda:1", offload=offload)
    ((name, options),) = calls
    assert name == {"model": "enable_model_cpu_offload", "group": "enable_group_offload"}[offload]
    if offload == "group":
        assert options["onload_device"] == torch.device("cuda:1")
        assert options["offload_device"] == torch.device("cpu") and options["use_stream"]
    else:
        assert options == {"device": "cuda:1"}


def test_options_of_loading_are_of_no_use_with_a_loaded_base(pipe, tmp_path):
    base = pipeline.of(pipe, "pico")
    concept = tiny.pico_concept(pipe)
    with ck.Registry(tmp_path / "home") as registry:
        registry.add("my_dog", concept.to_bytes(), concept.summary())
        with pytest.raises(BadRecipe, match="dtype = bf16 is for a base that comes by its name, and pico is"):
            ck.draw("my_dog", prompt="my_dog", base=base, dtype="bf16", registry=registry)
    with pytest.raises(BadRecipe, match="quantization = '2bit' is unknown"):
        AddSettings(quantization="2bit")


def test_a_base_in_half_precision_learns_and_stays_as_it_is(folder, tmp_path):
    base = pipeline.load(str(folder), dtype="bf16")
    before, shown = tiny.state_hash(base.pipe.unet), photos.read(draw_photos(tmp_path, SEEDS))
    concept = teach(base, shown, TINY)
    assert any(factors.first.any() for factors in concept.delta.values())
    assert base.dtype == torch.bfloat16 and tiny.state_hash(base.pipe.unet) == before
    half = pipeline.load(str(folder), dtype="fp16")
    with pytest.raises(BadRecipe, match="is in fp16, which does not go with mixed_precision = bf16"):
        teach(half, shown, dataclasses.replace(TINY, mixed_precision="bf16"))
