"""What PEFT promises of any tuner, with LoHa beside ours as the measure: both do the same, or both refuse."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from conceptkit.errors import ConceptError
from conceptkit.tuners import KeyedConfig, KVDeltaConfig, register
from conceptkit.tuners.kv_delta import KVDeltaLinear
from tests.tiny import pico_sd

OURS = [KVDeltaConfig, KeyedConfig]
EVERY = pytest.mark.parametrize("kind", [*OURS, LoHaConfig])
MINE = pytest.mark.parametrize("kind", OURS)
FROZEN = {"keyed_keys"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()).tanh())


def net():
    torch.manual_seed(0)
    return Net()


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name in (
                getattr(module, "adapter_layer_names", ()) if isinstance(module, BaseTunerLayer) else ()
            ):
                for part in getattr(module, name).values():
                    for weight in part.parameters() if isinstance(part, nn.Module) else [part]:
                        weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return model


def config(kind, **more):
    return kind(r=2, **{"target_modules": ["first", "second"]} | more)


def trainable(model):
    """{(module, adapter)} that learn; factors that stand still by nature aside."""
    found = set()
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            for attribute in module.adapter_layer_names:
                if attribute not in FROZEN:
                    part = getattr(module, attribute)
                    found |= {(path, name) for name in part if part[name].requires_grad}
        if isinstance(module, ModulesToSaveWrapper):
            found |= {
                (path, name)
                for name, copied in module.modules_to_save.items()
                if all(weight.requires_grad for weight in copied.parameters())
            }
    return found


X = torch.linspace(-1, 1, 8).view(2, 4)


@EVERY
@pytest.mark.parametrize("learn", [True, False])
def test_modules_to_save_learn_and_are_saved_and_loaded(kind, learn, tmp_path):
    model = randomised(get_peft_model(net(), config(kind, modules_to_save=["head"])))
    assert {path.rpartition(".")[2] for path, _ in trainable(model)} == {"first", "second", "head"}
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.add_(1)
    wanted = model(X)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(net(), tmp_path, is_trainable=learn)
    assert torch.allclose(again(X), wanted, atol=1e-6)
    assert trainable(again) == (trainable(model) if learn else set())
    again.load_adapter(tmp_path, "other", is_trainable=learn)
    measure = PeftModel.from_pretrained(net(), saved_loha(tmp_path), is_trainable=learn)
    measure.load_adapter(tmp_path / "loha", "other", is_trainable=learn)
    assert trainable(again) == trainable(measure)
    for chosen in (again, measure):
        chosen.set_adapter("other")
    assert trainable(again) == trainable(measure) and {name for _, name in trainable(again)} == {"other"}


def saved_loha(folder):
    model = get_peft_model(net(), config(LoHaConfig, modules_to_save=["head"]))
    model.save_pretrained(folder / "loha")
    return folder / "loha"


@EVERY
def test_maps_can_be_left_out(kind):
    model = get_peft_model(net(), config(kind, exclude_modules=["second"]))
    assert {path.rpartition(".")[2] for path, _ in trainable(model)} == {"first"}
    with pytest.raises(ValueError, match="excluded"):
        get_peft_model(net(), config(kind, exclude_modules=r"first|second"))


@EVERY
def test_several_adapters_at_once_add_up_and_learn(kind):
    model = get_peft_model(net(), config(kind))
    model.add_adapter("other", config(kind, target_modules=["second", "head"]))
    randomised(model)
    model.base_model.set_adapter(["default", "other"])
    assert {name for _, name in trainable(model)} == {"default", "other"}
    beside = model(X)
    dense = net()
    for path, module in model.base_model.model.named_modules():
        if isinstance(module, BaseTunerLayer):
            names = [n for n in ("default", "other") if n in module.scaling]
            dense.get_submodule(path).weight.data += sum(module.get_delta_weight(name) for name in names)
    assert torch.allclose(beside, dense(X), atol=1e-5)
    model.base_model.set_adapter(["default", "other"], inference_mode=True)
    assert not trainable(model)
    model.merge_adapter()
    assert torch.allclose(model(X), beside, atol=1e-5)
    with pytest.raises(ValueError, match="while they are merged"):
        model.base_model.delete_adapter("other")
    model.unmerge_adapter()
    assert torch.allclose(model(X), beside, atol=1e-5)
    model.delete_adapter("other")
    assert model.active_adapters == ["default"]


@MINE
def test_a_batch_of_several_adapters_is_refused_and_not_taken_for_one_of_the_first(kind):
    model = get_peft_model(net(), config(kind))
    model.add_adapter("other", config(kind))
    for call in (model, model.base_model.model.first):
        with pytest.raises(ConceptError, match="the same adapters for the whole batch.*set_adapter"):
            call(X, adapter_names=["default", "other"])
    assert torch.equal(model(X, adapter_names=None), model(X))


@MINE
def test_without_target_modules_it_goes_onto_keys_and_values(kind):
    unet = get_peft_model(pico_sd().unet, kind(r=1))
    layers = [path for path, module in unet.named_modules() if isinstance(module, KVDeltaLinear)]
    assert len(layers) == 14 and all(path.endswith(("attn2.to_k", "attn2.to_v")) for path in layers)
    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(net(), kind(r=1))


def test_registering_again_changes_nothing():
    tables = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
    before = [dict(table) for table in tables]
    register()
    assert [dict(table) for table in tables] == before


# merging with others in one map


def weights(model):
    return {
        name: weight.detach().clone() for name, weight in model.named_parameters() if "base_layer" in name
    }


@MINE
def test_merging_below_a_lora_and_back_leaves_the_map_as_it_was(kind):
    model = net()
    inner = get_peft_model(model, config(kind)).base_model.model
    stacked = get_peft_model(
        inner, LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False), "style"
    ).base_model.model
    randomised(stacked)
    before, beside = weights(stacked), stacked(X)
    layers = [module for module in stacked.modules() if isinstance(module, BaseTunerLayer)]
    assert len(layers) == 4
    for back in (layers, layers[::-1]):
        for layer in layers:
            layer.merge()
        assert torch.allclose(stacked(X), beside, atol=1e-5)
        for layer in back:
            layer.unmerge()
        after = weights(stacked)
        assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)
        assert torch.allclose(stacked(X), beside, atol=1e-5)


@MINE
def test_what_changes_a_map_while_merged_stays(kind):
    model = randomised(get_peft_model(net(), config(kind)))
    first = model.base_model.model.first
    before = first.weight.detach().clone()
    model.merge_adapter()
    with torch.no_grad():
        first.base_layer.weight[0] += 1
    model.unmerge_adapter()
    assert torch.equal(first.weight[1:], before[1:])
    assert torch.allclose(first.weight[0], before[0] + 1, atol=1e-6)


@MINE
def test_one_of_two_merged_adapters_leaves(kind):
    model = get_peft_model(net(), config(kind))
    model.add_adapter("other", config(kind))
    randomised(model)
    first = model.base_model.model.first
    plain = first.weight.detach().clone()
    model.merge_adapter(["default", "other"])
    first.unmerge_adapters(["default"])
    assert first.merged_adapters == ["other"]
    assert torch.allclose(first.weight, plain + first.get_delta_weight("other"), atol=1e-6)
    first.unmerge_adapters(["other"])
    assert torch.equal(first.weight, plain)


@MINE
def test_merged_maps_may_change_their_precision(kind):
    model = randomised(get_peft_model(net(), config(kind)))
    plain = copy.deepcopy(model.base_model.model.first.weight.detach())
    model.merge_adapter()
    model.half()
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.first.weight, plain.half())


def test_the_meta_device_has_room_for_it_too():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        unet.add_adapter(KVDeltaConfig(r=1, init_down="zero"))
    assert any(isinstance(module, KVDeltaLinear) for module in unet.modules())
