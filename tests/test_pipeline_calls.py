"""What pipelines are asked for while concepts are on them: the picture that was asked for, or a sentence."""

import functools

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import AutoPipelineForImage2Image, StableDiffusionPipeline
from peft import LoraConfig
from PIL import Image

from conceptkit.errors import BadBase, ConceptError
from conceptkit.inference import layout_cache
from conceptkit.inference.attach import attach
from conceptkit.inference.method_override import override
from conceptkit.tuners.kv_delta import KVDeltaLinear
from tests.test_voices import speaking
from tests.tiny import draw, pico_concept, pico_sd, snapshot

BOTH = "my_dog in front of a moongate"
ONE = "my_dog in the snow"


@pytest.fixture
def pipe():
    return pico_sd()


def two(pipe):
    return pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1, rank=3)


def style(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["ff.net.0.proj"], init_lora_weights=False), "style")


# state that is shared


def test_windows_outlive_the_hooks_of_model_offload(pipe):
    with attach(pipe, *two(pipe), side_by_side=True):
        wanted = draw(pipe, BOTH)
    pipe.enable_model_cpu_offload(device="cpu")
    with attach(pipe, *two(pipe), side_by_side=True):
        assert all(torch.equal(draw(pipe, BOTH), wanted) for _ in range(3))


@pytest.mark.parametrize("first", [True, False], ids=["offloaded first", "attached first"])
@pytest.mark.parametrize("detail", [True, False], ids=["detail", "frame"])
def test_one_frame_outlives_the_hooks_of_model_offload(pipe, detail, first):
    """At the end of each drawing these are taken off and put on again, with the model's own forward."""
    plain = draw(pipe, BOTH)
    with attach(pipe, *two(pipe), detail=detail):
        wanted = draw(pipe, BOTH)
    offload = functools.partial(pipe.enable_model_cpu_offload, device="cpu")
    if first:
        offload()
    attachment = attach(pipe, *two(pipe), detail=detail)
    if not first:
        offload()
    for _ in range(3):
        layout_cache._known.clear()
        assert torch.equal(draw(pipe, BOTH), wanted)
    attachment.detach()
    assert torch.equal(draw(pipe, BOTH), plain) and not torch.equal(plain, wanted)
    pipe.remove_all_hooks()
    assert torch.equal(draw(pipe, BOTH), plain)
    if first:
        assert pipe.unet.forward.__func__ is type(pipe.unet).forward


class Count(ModelHook):
    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


def test_hooks_of_others_stay_when_concepts_leave_and_do_not_come_back(pipe):
    hook = Count()
    attachment = attach(pipe, *two(pipe), side_by_side=True)
    add_hook_to_module(pipe.unet, hook)
    attachment.detach()
    draw(pipe, "a dog")
    assert hook.calls == 2
    attachment = attach(pipe, *two(pipe), side_by_side=True)
    remove_hook_from_module(pipe.unet)
    attachment.detach()
    draw(pipe, "a dog")
    assert hook.calls == 2


def test_a_method_that_was_put_on_top_stays_and_reads_no_names_afterwards(pipe):
    plain, calls = draw(pipe, ONE), []
    attachment = attach(pipe, pico_concept(pipe))
    below = pipe.encode_prompt

    @functools.wraps(below)
    def on_top(*args, **kwargs):
        calls.append(args)
        return below(*args, **kwargs)

    pipe.encode_prompt = on_top
    attachment.detach()
    assert torch.equal(draw(pipe, ONE), plain) and calls
    assert pipe.encode_prompt is on_top
    attach(pipe, pico_concept(pipe)).detach()


class Thing:
    def says(self):
        return "own"


def test_an_override_is_taken_off_in_any_order():
    thing = Thing()
    first = override(thing, "says", lambda: "first")
    second = override(thing, "says", lambda: "second")
    first()
    assert thing.says() == "second"
    second()
    assert thing.says() == "own"


def test_an_override_is_taken_off_where_somebody_has_moved_it():
    thing = Thing()
    first = override(thing, "says", lambda: "first")
    second = override(thing, "says", lambda: "second")
    thing.__dict__["told"] = thing.__dict__.pop("says")
    assert (thing.says(), thing.told()) == ("own", "second")
    second()
    assert thing.told() == "first"
    first()
    assert (thing.says(), thing.told()) == ("own", "own")


def test_a_second_pipeline_of_the_same_parts_says_that_it_reads_no_names(pipe):
    before = snapshot(pipe)
    more = {"image": Image.new("RGB", (16, 16), "green"), "strength": 0.9, "num_inference_steps": 3}
    attachment = attach(pipe, pico_concept(pipe))
    other = AutoPipelineForImage2Image.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match="my_dog reads for another pipeline.*write <my_dog> dog there"):
        draw(other, ONE, **more)
    with pytest.raises(ConceptError, match="Another pipeline of the same parts carries concepts"):
        attach(other, pico_concept(pipe, "moongate", "gate"))
    attachment.detach()
    assert len(other.tokenizer) == before["tokenizers"]["tokenizer"][1]
    draw(other, "<my_dog> dog in the snow", **more)
    with attach(other, pico_concept(pipe)):
        draw(other, ONE, **more)
    assert snapshot(pipe) == before


def test_a_part_that_was_replaced_is_told_and_the_old_one_is_left_clean(pipe):
    before, unet = snapshot(pipe), pipe.unet
    attachment = attach(pipe, pico_concept(pipe))
    pipe.unet = pico_sd().unet
    with pytest.raises(ConceptError, match="The unet of this pipeline was replaced since my_dog"):
        draw(pipe, ONE)
    attachment.detach()
    pipe.unet = unet
    assert snapshot(pipe) == before


def test_what_another_pipeline_draws_has_no_windows_of_the_first(pipe):
    more = {"image": Image.new("RGB", (16, 16), "green"), "strength": 0.9, "num_inference_steps": 3}
    other = AutoPipelineForImage2Image.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    with attach(pipe, *two(pipe), side_by_side=True):
        draw(pipe, BOTH)
        with pytest.warns(UserWarning, match="another pipeline"):
            drawn = draw(other, "<my_dog> dog in front of a <moongate> gate", **more)
    assert drawn.shape == (3, 16, 16)


def test_weights_that_are_put_away_are_told(pipe):
    table = pipe.text_encoder.get_input_embeddings()
    kept = table.weight.detach().clone()
    attachment = attach(pipe, pico_concept(pipe))
    wider = pipe.text_encoder.get_input_embeddings()
    wider.weight = torch.nn.Parameter(wider.weight.to("meta"), requires_grad=False)
    for layer in (m for m in pipe.unet.modules() if isinstance(m, KVDeltaLinear)):
        layer.kv_delta_up["conceptkit"] = torch.nn.Parameter(layer.kv_delta_up["conceptkit"].to("meta"))
    with pytest.raises(ConceptError, match="my_dog are put away.*enable_model_cpu_offload"):
        pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 32))
    attachment.detach()
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, kept)
    pipe.unet.to("meta")
    with pytest.raises(BadBase, match="put away, as enable_sequential_cpu_offload"):
        attach(pipe, pico_concept(pico_sd()))


@pytest.mark.parametrize("make", [pico_concept, speaking], ids=["keys and values", "gated LoRA"])
def test_layers_that_are_kept_in_less_precision_draw_the_concept(pipe, make):
    """diffusers casts each layer as it is called, and asks adapters not to cast for themselves."""
    concept, plain = make(pipe), draw(pipe, ONE)
    with attach(pipe, concept):
        wanted = draw(pipe, ONE)
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        close = draw(pipe, ONE)
    assert float((close - wanted).abs().max()) < float((wanted - plain).abs().max()) / 4
    assert not any(isinstance(module, KVDeltaLinear) for module in pipe.unet.modules())
    draw(pipe, ONE)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("count", [1, 2], ids=["one", "one frame"])
def test_a_concept_goes_onto_layers_that_are_kept_in_less_precision(pipe, count, storage):
    prompt, concepts = (ONE, (speaking(pipe),)) if count == 1 else (BOTH, two(pipe))
    base = draw(pipe, prompt)
    with attach(pipe, *concepts):
        moved = (draw(pipe, prompt) - base).abs().max()
    pipe.unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    rounded = draw(pipe, prompt)
    with attach(pipe, *concepts):
        again = (draw(pipe, prompt) - rounded).abs().max()
    assert moved / 2 < again < 2 * moved
    assert torch.equal(draw(pipe, prompt), rounded)


@pytest.mark.slow
def test_a_unet_that_is_compiled_before_or_after_draws_the_concept(pipe):
    with attach(pipe, pico_concept(pipe)):
        wanted = draw(pipe, ONE)
        own, pipe.unet = pipe.unet, torch.compile(pipe.unet, backend="eager")
        assert torch.equal(draw(pipe, ONE), wanted)
    with attach(pipe, pico_concept(pipe)):
        assert torch.equal(draw(pipe, ONE), wanted)
        pipe.unet = own
        assert torch.equal(draw(pipe, ONE), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("detail", [True, False], ids=["detail", "frame"])
def test_a_unet_that_is_compiled_draws_two_in_one_frame(pipe, detail):
    with attach(pipe, *two(pipe), detail=detail):
        wanted = draw(pipe, BOTH)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with attach(pipe, *two(pipe), detail=detail):
        assert torch.allclose(draw(pipe, BOTH), wanted, atol=1e-4)


# public calls


CALLS = {
    "set_adapters": (lambda p: p.set_adapters(["style"], [0.7]), "is not among the active ones"),
    "disable_lora": (lambda p: p.disable_lora(), "call enable_lora"),
    "fuse_lora": (lambda p: p.fuse_lora(components=["unet"]), "call unfuse_lora"),
    "unload_lora_weights": (lambda p: p.unload_lora_weights(), "had no part in this call"),
    "delete_adapters": (lambda p: p.delete_adapters(["conceptkit"]), "was deleted"),
    "fuse_qkv_projections": (lambda p: p.fuse_qkv_projections(), "changes had no part.*fuse_qkv_projections"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_switches_a_concept_off_is_told_at_the_next_drawing(pipe, call):
    plain = draw(pipe, "a photo of a dog")
    style(pipe)
    attachment = attach(pipe, pico_concept(pipe))
    draw(pipe, ONE)
    make, sentence = CALLS[call]
    make(pipe)
    with pytest.raises(ConceptError, match=f"my_dog.*{sentence}|{sentence}.*my_dog"):
        draw(pipe, ONE)
    attachment.detach()
    pipe.unfuse_qkv_projections() if call == "fuse_qkv_projections" else None
    pipe.unfuse_lora() if call == "fuse_lora" else None
    pipe.unload_lora_weights()
    # what a LoRA merges it does not take out to the last bit
    assert torch.allclose(draw(pipe, "a photo of a dog"), plain, atol=1e-5 if call == "fuse_lora" else 0)


def test_what_is_fused_and_unloaded_leaves_the_base_as_it_was(pipe):
    before = snapshot(pipe)
    attachment = attach(pipe, pico_concept(pipe, text_rank=2))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    attachment.detach()
    after = snapshot(pipe)
    assert all(after[key] == before[key] for key in ("state", "modules", "repr", "picture", "tokenizers"))


def test_calls_that_name_the_concept_too_keep_it(pipe):
    style(pipe)
    with attach(pipe, pico_concept(pipe)):
        wanted = draw(pipe, ONE)
        pipe.disable_lora()
        pipe.enable_lora()
        pipe.set_adapters(["conceptkit", "style"], [1.0, 1.0])
        assert torch.equal(draw(pipe, ONE), wanted)
        pipe.fuse_lora(components=["unet"], adapter_names=["style"])
        assert torch.allclose(draw(pipe, ONE), wanted, atol=1e-4)
        pipe.set_adapters(["conceptkit", "style"], [0.5, 1.0])
        half = draw(pipe, ONE)
        assert not torch.allclose(half, wanted, atol=1e-4)
        draw(pipe, ONE, cross_attention_kwargs={"scale": 0.0})
        assert torch.equal(draw(pipe, ONE), half), "a drawing at scale 0 changes no weight of an adapter"


def test_the_text_encoders_maps_are_checked_too(pipe):
    with attach(pipe, pico_concept(pipe, text_rank=2)):
        pipe.text_encoder.disable_adapters()
        with pytest.raises(ConceptError, match="my_dog off too; call enable_lora"):
            draw(pipe, ONE)


@pytest.mark.parametrize("how", ["regmean", "routed"])
def test_fused_projections_are_refused(pipe, how):
    pipe.fuse_qkv_projections()
    with pytest.raises(ConceptError, match="call unfuse_qkv_projections"):
        attach(pipe, *two(pipe), merge_method=how)
    pipe.unfuse_qkv_projections()
    with attach(pipe, *two(pipe), merge_method=how):
        draw(pipe, BOTH)
        pipe.fuse_qkv_projections()
        with pytest.raises(ConceptError, match="had no part in this call"):
            draw(pipe, BOTH)


@pytest.mark.parametrize("how", ["regmean", "routed"])
def test_a_scale_is_that_of_what_concepts_add(pipe, how):
    first, second = two(pipe)
    plain = {"cross_attention_kwargs": {"scale": 0.0}}
    half = {"cross_attention_kwargs": {"scale": 0.5}}
    with attach(pipe, first, second, merge_method="sum"):
        words = draw(pipe, BOTH, **plain)
    with attach(pipe, first, second, merge_method=how):
        whole = draw(pipe, BOTH)
        assert torch.equal(draw(pipe, BOTH, **plain), words) and not torch.equal(whole, words)
        scaled = draw(pipe, BOTH, **half)
        assert not torch.allclose(scaled, whole, atol=1e-4) and not torch.allclose(scaled, words, atol=1e-4)
        assert torch.equal(draw(pipe, BOTH), whole)


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "token alone"])
def test_a_pipeline_with_a_concept_on_it_is_not_saved(pipe, tmp_path, delta):
    concept = pico_concept(pipe)
    attachment = attach(pipe, concept if delta else pico_concept(pipe, size=0.0))
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    for thing in (pipe, other, pipe.unet, pipe.text_encoder):
        with pytest.raises(ConceptError, match="carries my_dog.*detach first"):
            thing.save_pretrained(tmp_path / "whole")
    attachment.detach()
    pipe.save_pretrained(tmp_path / "whole")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "whole")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, "a dog"), draw(pipe, "a dog"))
