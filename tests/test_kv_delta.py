"""The KV_DELTA type keeps its contract with peft and diffusers, whose internals it relies on."""

import re

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from conceptkit.base import attention
from conceptkit.base.adapters import ADAPTER
from conceptkit.errors import BadRecipe, BaseMismatch, ConceptError, NoEffect
from conceptkit.tuners.conv_delta import KVDeltaConv2d
from conceptkit.tuners.inject import install, read_delta, share_down, uninstall
from conceptkit.tuners.kv_delta import KVDeltaConfig, KVDeltaLinear
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, snapshot

PROMPT = "a photo of a dog"


@pytest.fixture
def pipe():
    return pico_sd()


def layers(unet):
    return [module for module in unet.modules() if isinstance(module, KVDeltaLinear)]


def randomise(unet, seed=0, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in unet.named_parameters():
        if re.search("kv_delta_(up|weight)", name):
            parameter.data = size * torch.randn(parameter.shape, generator=generator)


def call(unet, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        return unet(latents, 10, torch.randn(1, 77, 32, generator=generator)).sample


@pytest.mark.parametrize("r", [0, 3])
def test_an_adapter_starts_without_effect_and_learns(pipe, r):
    before = call(pipe.unet)
    pipe.unet.add_adapter(KVDeltaConfig(r=r))
    assert len(layers(pipe.unet)) == 14
    assert torch.equal(call(pipe.unet), before)
    trained = [name for name, parameter in pipe.unet.named_parameters() if parameter.requires_grad]
    assert len(trained) == (14 if r == 0 else 28) and all("kv_delta_" in name for name in trained)
    randomise(pipe.unet)
    assert not torch.allclose(call(pipe.unet), before)


@pytest.mark.parametrize("of_cells", [False, True], ids=["linear", "convolution"])
def test_a_gate_says_how_far_ranks_act_by_what_the_map_gives(of_cells):
    """Against both factors written out; one that is shut reads nothing of them."""
    layer, x = narrow_layer(of_cells)
    base, whole = layer.base_layer(x), layer(x)
    seen = []

    def half(y):
        seen.append(y.shape)
        return y.new_tensor([0.5, 0.0])

    layer.gates["one"] = half
    found = layer(x)
    cells = found.flatten(2).transpose(1, 2) if of_cells else found
    assert seen == [cells.shape]
    layer.gates["one"] = lambda y: torch.ones(y.shape[1], 2)
    assert torch.allclose(layer(x), whole, atol=1e-6)
    with torch.no_grad():
        layer.kv_delta_up["one"][:, 0] *= 0.5
        layer.kv_delta_up["one"][:, 1] = 0
        del layer.gates["one"]
        assert torch.allclose(found, layer(x), atol=1e-6)
        layer.gates["one"] = lambda y: None
        layer.kv_delta_down["one"].fill_(torch.nan)
        assert torch.equal(layer(x), base)


def narrow_layer(of_cells):
    """A map from three channels to five with a random delta of two ranks, and what it may be given."""
    config = KVDeltaConfig(r=2)
    dice = torch.Generator().manual_seed(0)
    if of_cells:
        base, x = torch.nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 4, 4, generator=dice)
        layer = KVDeltaConv2d(base, "one", config)
    else:
        base, x = torch.nn.Linear(3, 5), torch.randn(2, 4, 3, generator=dice)
        layer = KVDeltaLinear(base, "one", config)
    layer.kv_delta_up["one"].data = torch.randn(5, 2, generator=dice)
    return layer, x


def test_every_other_parameter_is_frozen_and_gradients_reach_both_factors(pipe):
    pipe.unet.add_adapter(KVDeltaConfig(r=2))
    randomise(pipe.unet)
    pipe.unet(torch.randn(1, 4, 8, 8), 10, torch.randn(1, 77, 32)).sample.square().mean().backward()
    for name, parameter in pipe.unet.named_parameters():
        assert (parameter.grad is not None) == ("kv_delta_" in name), name


@pytest.mark.parametrize("freeze", [True, False])
def test_one_down_factor_shared_by_all_layers(pipe, freeze):
    pipe.unet.add_adapter(KVDeltaConfig(r=2, freeze_down=freeze))
    down = share_down(pipe.unet, torch.randn(2, 32))
    assert all(layer.kv_delta_down["default"] is down for layer in layers(pipe.unet))
    trained = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    assert len(trained) == 14 + (not freeze)
    randomise(pipe.unet)
    pipe.unet(torch.randn(1, 4, 8, 8), 10, torch.randn(1, 77, 32)).sample.square().mean().backward()
    assert (down.grad is None) == freeze
    pipe.unet.set_adapter("default")
    assert down.requires_grad is not freeze
    delta = read_delta(pipe.unet)
    assert list(delta) == list(attention.kv_maps(pipe.unet))
    assert len(delta.downs) == 1
    with pytest.raises(BadRecipe, match=r"\(3, 32\) does not fit"):
        share_down(pipe.unet, torch.randn(3, 32))


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
def test_install_draws_the_delta_and_uninstall_leaves_no_trace(build, rank):
    pipe = build()
    before = snapshot(pipe)
    delta = pico_concept(pipe, rank=rank).delta
    state = torch.get_rng_state()
    install(pipe.unet, delta)
    assert torch.equal(torch.get_rng_state(), state)
    with_delta = draw(pipe, PROMPT)
    assert with_delta.numpy().tobytes() != before["picture"]
    read = read_delta(pipe.unet)
    assert all(torch.equal(a, b) for name in delta for a, b in zip(delta[name], read[name], strict=True))
    if rank:
        assert len({id(layer.kv_delta_down["conceptkit"]) for layer in layers(pipe.unet)}) == 1
    uninstall(pipe.unet)
    assert snapshot(pipe) == before

    for name, linear in attention.kv_maps(pipe.unet).items():
        linear.weight.data += delta[name].dense()
    assert torch.allclose(draw(pipe, PROMPT), with_delta, atol=1e-5)


def test_maps_may_differ_in_rank_and_kind(pipe):
    low, full = pico_concept(pipe, rank=2).delta, pico_concept(pipe, rank=0).delta
    names = list(low)
    mixed = {names[0]: low[names[0]], names[3]: full[names[3]]}
    install(pipe.unet, mixed)
    assert len(layers(pipe.unet)) == 2
    assert {name: len(factors.tensors) for name, factors in read_delta(pipe.unet).items()} == {
        names[0]: 2,
        names[3]: 1,
    }


def test_merge_and_unmerge_are_exact(pipe):
    before = snapshot(pipe)
    install(pipe.unet, pico_concept(pipe).delta)
    beside = call(pipe.unet)
    pipe.fuse_lora(components=["unet"])
    assert torch.allclose(call(pipe.unet), beside, atol=1e-5)
    pipe.unfuse_lora(components=["unet"])
    assert torch.equal(call(pipe.unet), beside)
    pipe.fuse_lora(components=["unet"])
    uninstall(pipe.unet)
    after = snapshot(pipe)
    assert {k: v for k, v in after.items() if k != "attributes"} == {
        k: v for k, v in before.items() if k != "attributes"
    }


def test_scale(pipe):
    delta = pico_concept(pipe).delta
    plain = draw(pipe, PROMPT)
    install(pipe.unet, {name: (0.5 * up, down) for name, (up, down) in delta.items()})
    half = draw(pipe, PROMPT)
    uninstall(pipe.unet)
    install(pipe.unet, delta)
    whole = draw(pipe, PROMPT)
    assert torch.allclose(draw(pipe, PROMPT, cross_attention_kwargs={"scale": 0.5}), half, atol=1e-5)
    assert torch.equal(draw(pipe, PROMPT, cross_attention_kwargs={"scale": 0.0}), plain)
    assert torch.equal(draw(pipe, PROMPT), whole)
    pipe.set_adapters(["conceptkit"], [0.5])
    assert torch.allclose(draw(pipe, PROMPT), half, atol=1e-5)
    pipe.disable_lora()
    assert torch.equal(draw(pipe, PROMPT), plain)
    pipe.enable_lora()
    assert torch.allclose(draw(pipe, PROMPT), half, atol=1e-5)


def test_two_adapters_add_up_and_leave_one_by_one(pipe):
    first, second = pico_concept(pipe, seed=1).delta, pico_concept(pipe, seed=2).delta
    install(pipe.unet, first, "first")
    alone = call(pipe.unet)
    install(pipe.unet, second, "second")
    pipe.unet.set_adapters(["first", "second"], [1.0, 1.0])
    both = call(pipe.unet)
    uninstall(pipe.unet, "second")
    assert torch.equal(call(pipe.unet), alone) and not torch.allclose(both, alone)
    pipe.unet.add_adapter(KVDeltaConfig(r=1), "third")
    pipe.unet.delete_adapters("third")
    pipe.unet.set_adapter("first")
    assert torch.equal(call(pipe.unet), alone)
    with pytest.raises(ConceptError, match="already carries 'first'"):
        install(pipe.unet, second, "first")
    pipe.unet.unload_lora()
    assert not layers(pipe.unet)


def test_peft_saves_loads_merges(pipe, tmp_path):
    model = get_peft_model(pipe.unet, KVDeltaConfig(r=2, init_down="orthonormal"))
    randomise(model)
    expected = call(model)
    share_down(model.base_model.model, torch.randn(2, 32))
    expected = call(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(pico_sd().unet, tmp_path)
    assert torch.equal(call(again), expected)
    assert again.peft_config["default"].r == 2 and isinstance(again.peft_config["default"], KVDeltaConfig)
    keys = set(get_peft_model_state_dict(model))
    assert len(keys) == 28 and all(key.rpartition(".")[2] in ("kv_delta_up", "kv_delta_down") for key in keys)
    merged = again.merge_and_unload()
    assert not layers(merged) and torch.allclose(call(merged), expected, atol=1e-5)


def test_peft_converts_it_to_a_lora(pipe):
    model = get_peft_model(pipe.unet, KVDeltaConfig(r=3))
    randomise(model)
    expected = call(model)
    config, state = peft.convert_to_lora(model, rank=3)
    lora = get_peft_model(pico_sd().unet, config)
    peft.set_peft_model_state_dict(lora, state)
    assert torch.allclose(call(lora), expected, atol=1e-4)


def test_beside_a_lora_on_other_maps(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn1.to_q"], init_lora_weights=False), "style")
    styled = call(pipe.unet)
    before = snapshot(pipe)
    install(pipe.unet, pico_concept(pipe).delta)
    both = call(pipe.unet)
    assert not torch.allclose(both, styled)
    uninstall(pipe.unet)
    assert torch.equal(call(pipe.unet), styled)
    assert snapshot(pipe) == before


def test_beside_a_lora_on_the_same_maps(pipe):
    config = LoraConfig(r=2, target_modules=["attn2.to_k", "proj_in"], init_lora_weights=False)
    pipe.unet.add_adapter(config, "style")
    before, styled = snapshot(pipe), call(pipe.unet)
    delta = pico_concept(pipe).delta
    install(pipe.unet, delta)
    both = call(pipe.unet)
    pipe.unet.set_adapters(["style", ADAPTER], [0.0, 1.0])
    alone = call(pipe.unet)
    pipe.unet.set_adapters(["style", ADAPTER], [1.0, 1.0])
    assert torch.equal(call(pipe.unet), both)
    uninstall(pipe.unet)
    pipe.unet.set_adapters(["style"], [1.0])
    assert torch.equal(call(pipe.unet), styled) and snapshot(pipe) == before
    plain = pico_sd().unet
    install(plain, delta)
    assert torch.allclose(call(plain), alone, atol=1e-6) and not torch.allclose(alone, both, atol=1e-4)
    uninstall(plain)
    lora = {
        n: m.get_delta_weight("style").detach() for n, m in pipe.unet.named_modules() if hasattr(m, "lora_A")
    }
    weights = {name: plain.get_submodule(name).weight for name in {*lora, *delta}}
    for name, weight in weights.items():
        weight.data += lora.get(name, 0) + (delta[name].dense() if name in delta else 0)
    assert torch.allclose(call(plain), both, atol=1e-5)


def test_other_adapters_on_the_same_maps_are_refused(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"], use_dora=True), "style")
    before = snapshot(pipe)
    with pytest.raises(ConceptError, match="already carries a LoRA"):
        install(pipe.unet, pico_concept(pipe).delta)
    with pytest.raises(ConceptError, match="already carries a LoRA"):
        pipe.unet.add_adapter(KVDeltaConfig(r=2), "mine")
    assert snapshot(pipe) == before


def test_a_lora_loaded_on_top_stays_when_the_delta_leaves(pipe):
    install(pipe.unet, pico_concept(pipe).delta)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"], init_lora_weights=False), "style")
    pipe.unet.set_adapters(["conceptkit", "style"])
    uninstall(pipe.unet)
    fresh = pico_sd().unet
    fresh.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"]), "style")
    fresh.load_state_dict(pipe.unet.state_dict())
    pipe.unet.set_adapters(["style"])
    assert torch.equal(call(pipe.unet), call(fresh))


def test_half_precision(pipe):
    pipe.unet.half()
    install(pipe.unet, pico_concept(pipe).delta)
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float16}
    pipe.unet.float()
    assert torch.isfinite(call(pipe.unet)).all()


def test_what_does_not_fit_is_refused_whole(pipe, monkeypatch):
    before = snapshot(pipe)
    delta = pico_concept(pipe).delta
    first = next(iter(delta))
    with pytest.raises(NoEffect, match="no map"):
        install(pipe.unet, {})
    with pytest.raises(BaseMismatch, match="is missing"):
        install(pipe.unet, delta | {"down_blocks.9.attn2.to_k": delta[first]})
    with pytest.raises(BaseMismatch, match=r"is \(16, 33\) and the map \(16, 32\)"):
        install(pipe.unet, delta | {first: (torch.zeros(16, 1), torch.zeros(1, 33))})
    calls = iter(range(100))
    original = KVDeltaLinear.set_factors

    def breaks(self, *args):
        if next(calls) == 10:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(KVDeltaLinear, "set_factors", breaks)
    with pytest.raises(KeyboardInterrupt):
        install(pipe.unet, delta)
    assert snapshot(pipe) == before


@pytest.mark.parametrize(
    ("config", "maps", "outputs"),
    [
        ({"cross_attention_dim": 768}, 32, 24_960),
        (
            {
                "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
            },
            140,
            166_400,
        ),
    ],
    ids=["sd15", "sdxl"],
)
def test_the_default_targets_are_the_maps_of_real_bases(config, maps, outputs):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        names = list(attention.kv_maps(unet))
        unet.add_adapter(KVDeltaConfig(r=1, init_down="zero"))
    delta = read_delta(unet)
    assert list(delta) == names and len(delta) == maps
    assert sum(len(up) for up, _ in delta.values()) == outputs


def test_configs_that_make_no_sense():
    with pytest.raises(BadRecipe, match="r = -1"):
        KVDeltaConfig(r=-1)
    with pytest.raises(BadRecipe, match="init_down = 'nice' is unknown"):
        KVDeltaConfig(init_down="nice")


def test_reading_needs_to_know_which_adapter(pipe):
    with pytest.raises(ConceptError, match=r"carries the KV_DELTA adapters \[\]"):
        read_delta(pipe.unet)
