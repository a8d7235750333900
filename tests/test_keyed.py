"""KEYED is a PEFT type like KV_DELTA, and its keys never move."""

import json

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict

from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.tuners.inject import install, share_down, uninstall
from conceptkit.tuners.keyed import KeyedConfig, KeyedLinear
from conceptkit.tuners.kv_delta import KVDeltaConfig
from tests import warm_process
from tests.test_kv_delta import call, layers
from tests.tiny import pico_concept, pico_sd, save, snapshot


@pytest.fixture
def pipe():
    return pico_sd()


def keyed(unet, keys=2, adapter="default"):
    unet.add_adapter(KeyedConfig(r=keys), adapter)
    return share_down(unet, torch.randn(keys, 32, generator=torch.Generator().manual_seed(1)), adapter)


def fill(unet, size=0.3):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if "keyed_values" in name:
            parameter.data = size * torch.randn(parameter.shape, generator=generator)


def test_it_starts_without_effect_and_only_values_learn(pipe):
    before = call(pipe.unet)
    keys = keyed(pipe.unet)
    assert len(layers(pipe.unet)) == 14 and all(type(layer) is KeyedLinear for layer in layers(pipe.unet))
    assert torch.equal(call(pipe.unet), before)
    learning = [name for name, parameter in pipe.unet.named_parameters() if parameter.requires_grad]
    assert len(learning) == 14 and all("keyed_values" in name for name in learning)
    fill(pipe.unet)
    pipe.unet(torch.randn(1, 4, 8, 8), 10, torch.randn(1, 77, 32)).sample.square().mean().backward()
    assert keys.grad is None
    assert all(p.grad is not None for n, p in pipe.unet.named_parameters() if "keyed_values" in n)
    pipe.unet.set_adapter("default")
    assert not keys.requires_grad


def test_where_a_key_reads_one_the_map_gains_its_value(pipe):
    keyed(pipe.unet)
    fill(pipe.unet)
    layer = layers(pipe.unet)[0]
    values, keys = layer.factors("default")
    rows = torch.linalg.pinv(keys).T  # row i is read as 1 by key i and as 0 by the other
    with torch.no_grad():
        added = layer(rows) - layer.base_layer(rows)
    assert torch.allclose(added, values.T, atol=1e-5)


def test_peft_saves_loads_merges_and_converts(pipe, tmp_path):
    model = get_peft_model(pipe.unet, KeyedConfig(r=2))
    share_down(model.base_model.model, torch.randn(2, 32))
    fill(model)
    expected = call(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "KEYED"
    again = PeftModel.from_pretrained(pico_sd().unet, tmp_path)
    assert torch.equal(call(again), expected)
    keys = set(get_peft_model_state_dict(model))
    assert len(keys) == 28 and {key.rpartition(".")[2] for key in keys} == {"keyed_values", "keyed_keys"}
    config, state = peft.convert_to_lora(model, rank=2)
    lora = get_peft_model(pico_sd().unet, config)
    peft.set_peft_model_state_dict(lora, state)
    assert torch.allclose(call(lora), expected, atol=1e-4)
    assert torch.allclose(call(again.merge_and_unload()), expected, atol=1e-5)


def test_diffusers_own_road(pipe):
    before = snapshot(pipe)
    plain = call(pipe.unet)
    keyed(pipe.unet, adapter="mine")
    fill(pipe.unet)
    whole = call(pipe.unet)
    keyed(pipe.unet, adapter="other")
    pipe.unet.set_adapters(["mine", "other"], [1.0, 1.0])
    assert torch.allclose(call(pipe.unet), whole, atol=1e-6)
    pipe.unet.delete_adapters("other")
    pipe.unet.set_adapters(["mine"], [0.0])
    assert torch.equal(call(pipe.unet), plain)
    pipe.set_adapters(["mine"], [1.0])
    pipe.fuse_lora(components=["unet"])
    assert torch.allclose(call(pipe.unet), whole, atol=1e-5)
    pipe.unfuse_lora(components=["unet"])
    pipe.disable_lora()
    assert torch.equal(call(pipe.unet), plain)
    pipe.enable_lora()
    assert torch.equal(call(pipe.unet), whole)
    uninstall(pipe.unet)
    assert snapshot(pipe)["state"] == before["state"] and not layers(pipe.unet)


def test_the_two_types_do_not_lie_on_one_map(pipe):
    keyed(pipe.unet)
    with pytest.raises(ConceptError, match="already carries a KeyedLinear"):
        install(pipe.unet, pico_concept(pipe).delta)
    with pytest.raises(ConceptError, match="already carries a KeyedLinear"):
        pipe.unet.add_adapter(KVDeltaConfig(r=1), "beside")
    assert all(list(layer.scaling) == ["default"] for layer in layers(pipe.unet))


@pytest.mark.parametrize("values", [{"r": 0}, {"freeze_down": False}])
def test_keys_that_move_are_no_keys(values):
    with pytest.raises(BadRecipe, match="keys that stand still"):
        KeyedConfig(**values)


PLAIN = """
import sys, torch, conceptkit.tuners.inject
from diffusers import UNet2DConditionModel
from peft import PeftModel
loaded = sorted(name for name in sys.modules if name.startswith("conceptkit."))
plain = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet")
unet = PeftModel.from_pretrained(plain, sys.argv[2])
generator = torch.Generator().manual_seed(0)
latents = torch.randn(1, 4, 8, 8, generator=generator)
with torch.no_grad():
    made = unet(latents, 10, torch.randn(1, 77, 32, generator=generator)).sample
unet.save_pretrained(sys.argv[3])
torch.save(made, sys.argv[3] + "/made.pt")
print("conceptkit.workflows.add" in loaded, type(unet.peft_config["default"]).__name__)
"""


@pytest.mark.parametrize("config", [KeyedConfig(r=2), KVDeltaConfig(r=2), KVDeltaConfig(r=0)], ids=str)
def test_a_process_that_only_imported_the_types_reads_and_writes_them(pipe, tmp_path, config):
    base = save(pipe, tmp_path / "base")
    model = get_peft_model(pipe.unet, config)
    for name, parameter in model.named_parameters():
        if "keyed_" in name or "kv_delta_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    expected = call(model)
    model.save_pretrained(tmp_path / "adapter")
    arguments = base, tmp_path / "adapter", tmp_path / "again"
    told = warm_process.run(PLAIN, *arguments, folder=tmp_path).split()
    assert told[-2:] == ["False", type(config).__name__]
    made = torch.load(tmp_path / "again" / "made.pt", weights_only=True)
    assert torch.allclose(made, expected, atol=1e-6)
    again = PeftModel.from_pretrained(pico_sd().unet, tmp_path / "again")
    assert torch.equal(call(again), expected)
