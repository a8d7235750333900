"""DreamBooth on flows learns what diffusers' scripts learn, beside a loop written here with torch and PEFT.

Both sides have the same latents, noise, noise levels, prompts and first values. Prompts are read by the
pipelines themselves with the rare word in them that the concept's token begins as.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, QwenImagePipeline
from peft import LoraConfig

from benchmarks.parity_tape import recording
from conceptkit.base import pipeline
from conceptkit.features import caption_statistics, captions
from conceptkit.learn import recipes
from conceptkit.learn.config import config_for
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import train
from tests import language_model_tiny, transformers_tiny
from tests.learn.test_parity import CLOSE, SMALL, apart

STEPS = 2
IN_PARTS = SMALL | {"gradient_accumulation_steps": 2, "max_train_steps": STEPS}
SELF = ("to_q", "to_k", "to_v", "to_out.0")
JOINT = (*SELF, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


def sd3(pipe, noisy, times, prompts):
    hidden, _, pooled, _ = pipe.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
    found = pipe.transformer(noisy, hidden, pooled, times)
    return found.sample


def flux(pipe, noisy, times, prompts):
    hidden, pooled, text_ids = pipe.encode_prompt(prompts, None)
    n, c, h, w = noisy.shape
    found = pipe.transformer(
        FluxPipeline._pack_latents(noisy, n, c, h, w),
        hidden,
        pooled,
        times / 1000,
        FluxPipeline._prepare_latent_image_ids(n, h // 2, w // 2, "cpu", noisy.dtype),
        text_ids,
        torch.ones(n),
    )
    return FluxPipeline._unpack_latents(found.sample, 2 * h, 2 * w, 2)


def klein(pipe, noisy, times, prompts):
    hidden, text_ids = pipe.encode_prompt(prompts)
    squares = torch.nn.functional.pixel_unshuffle(noisy, 2)
    found = pipe.transformer(
        hidden_states=squares.flatten(2).mT,
        encoder_hidden_states=hidden,
        timestep=times / 1000,
        img_ids=pipe._prepare_latent_ids(squares),
        txt_ids=text_ids,
    )
    return torch.nn.functional.pixel_shuffle(found.sample.mT.reshape(squares.shape), 2)


def sana(pipe, noisy, times, prompts):
    hidden, mask, _, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    return pipe.transformer(noisy, hidden.to(noisy), times, encoder_attention_mask=mask).sample


def qwen_image(pipe, noisy, times, prompts):
    hidden, mask = pipe.encode_prompt(prompts)
    n, c, h, w = noisy.shape
    found = pipe.transformer(
        QwenImagePipeline._pack_latents(noisy.unsqueeze(1), n, c, h, w),
        hidden,
        mask,
        times / 1000,
        img_shapes=[(1, h // 2, w // 2)] * n,
    )
    return QwenImagePipeline._unpack_latents(found.sample, 2 * h, 2 * w, 2).squeeze(2)


def z_image(pipe, noisy, times, prompts):
    hidden, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    found = pipe.transformer([one.unsqueeze(1) for one in noisy], 1 - times / 1000, hidden)
    return -torch.stack(found.sample).squeeze(2)


@dataclass(frozen=True)
class Script:
    """What the script of a family has: read in it, not in our recipe.

    predict: the velocity. maps: that a LoRA goes on, by the ends of their names. power: by which power of the
    noise level the squared error is weighted.
    """

    build: object
    predict: object
    maps: tuple
    rate: float = 1e-4
    decay: float = 1e-4
    power: int = 0


SCRIPTS = {
    "sd3": Script(transformers_tiny.pico_sd3, sd3, tuple(f"attn.{m}" for m in JOINT), rate=4e-4, power=2),
    "flux": Script(transformers_tiny.pico_flux, flux, (*(f"attn.{m}" for m in JOINT), *FEED_FORWARD)),
    "flux2": Script(
        language_model_tiny.pico_klein,
        klein,
        (*SELF, "to_qkv_mlp_proj", "single_transformer_blocks.0.attn.to_out"),
    ),
    "sana": Script(language_model_tiny.pico_sana, sana, SELF[:3]),
    "qwen-image": Script(language_model_tiny.pico_qwen_image, qwen_image, SELF, rate=2e-4),
    "z-image": Script(language_model_tiny.pico_z_image, z_image, SELF),
}


@pytest.fixture(scope="module", autouse=True)
def few_captions():
    """Their statistics say nothing to these loops, and hundreds through a language model take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        every = captions.captions("")
        patch.setattr(caption_statistics, "captions", lambda family: every[:4])
        yield


def ours(pipe, shown, family, **changes):
    recipe = config_for("dreambooth", family=family, changes=IN_PARTS | changes)
    request = TrainRequest((Subject("my_dog", "dog", shown),), recipe)
    with recording() as tape:
        concept = train(request, Session(pipeline.of(pipe, "pico"))).whole
    return concept, tape


def theirs(pipe, tape, script, rare, levels=None):
    """The LoRA after the tape's steps, two parts of a picture each, with its class beside it or without.

    levels: the scheduler's, unless others are given.
    """
    levels = levels or FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    for encoder in filter(None, (pipe.components.get(f"text_encoder{k}") for k in ("", "_2", "_3"))):
        encoder.requires_grad_(False)
    model = pipe.transformer.requires_grad_(False)
    model.add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=list(script.maps))
    )
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, down in tape.downs.items():
            learned[f"{name}.lora_A.default.weight"].copy_(down)
    assert len(learned) == 2 * len(tape.downs), "a LoRA on the script's maps and on no others"
    optimizer = torch.optim.AdamW(learned.values(), lr=script.rate, weight_decay=script.decay)
    for k, part in enumerate(tape.parts):
        places = 999 - part.t  # a scheduler counts down from the noise
        sigma = levels.sigmas[places].view(-1, 1, 1, 1)
        noisy = (1 - sigma) * part.clean + sigma * part.noise
        prompts = [text.replace("<my_dog>", rare) for text in part.prompts]
        found = script.predict(pipe, noisy, levels.timesteps[places], prompts)
        error = (found - (part.noise - part.clean)).square() * sigma**script.power
        loss = error[: part.own].mean()
        if len(error) > part.own:
            loss = loss + error[part.own :].mean()
        (loss / 2).backward()
        if k % 2:
            torch.nn.utils.clip_grad_norm_(learned.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return {name.replace(".default.weight", ""): value.detach() for name, value in learned.items()}


def moved(concept, tape):
    """Names -> factors, and those that they began as."""
    found, first = {}, {}
    for name, (up, down) in concept.delta.items():
        found |= {f"{name}.lora_B": up, f"{name}.lora_A": down}
        first |= {f"{name}.lora_B": torch.zeros_like(up), f"{name}.lora_A": tape.downs[name]}
    return found, first


def compared(found, wanted, first):
    """Relative difference of the weights, and of how far they have come."""
    way = {name: wanted[name] - first[name] for name in wanted}
    gone = {name: found[name] - first[name] for name in wanted}
    return apart(found, wanted), apart(gone, way)


@pytest.mark.parametrize("prior", [0.0, 1.0], ids=["alone", "with prior"])
@pytest.mark.parametrize("family", SCRIPTS)
def test_a_dreambooth_lora_on_a_flow_is_that_of_the_script(shown, family, prior):
    script = SCRIPTS[family]
    pipe = script.build()
    base = copy.deepcopy(pipe)
    concept, tape = ours(pipe, shown, family, prior_loss_weight=prior)
    assert len(tape.parts) == 2 * STEPS and recipes.ROWS["dreambooth", family].config.rank == 4
    prompts = {part.prompts for part in tape.parts}
    assert prompts == {("a photo of <my_dog> dog", "a photo of dog")[: 1 + bool(prior)]}
    found, first = moved(concept, tape)
    wanted = theirs(base, tape, script, concept.provenance["identifier"])
    weights, way = compared(found, wanted, first)
    assert weights < CLOSE and way < 1e-3


def test_prompts_may_be_read_in_another_precision_than_pictures_are_learned_in(shown):
    """As the script for Sana has it, and its pipeline."""
    pipe = language_model_tiny.pico_sana()
    pipe.text_encoder.to(torch.bfloat16)
    base = copy.deepcopy(pipe)
    concept, tape = ours(pipe, shown, "sana")
    found, first = moved(concept, tape)
    wanted = theirs(base, tape, SCRIPTS["sana"], concept.provenance["identifier"])
    assert compared(found, wanted, first)[0] < CLOSE


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sd3", {"precondition_outputs": False}),
        ("qwen-image", {"learning_rate": 1e-4}),
        ("z-image", {"adam_weight_decay": 1.0}),
    ],
)
def test_the_comparison_tells_a_loop_from_another(shown, family, changes):
    script = SCRIPTS[family]
    pipe = script.build()
    base = copy.deepcopy(pipe)
    concept, tape = ours(pipe, shown, family, **changes)
    found, first = moved(concept, tape)
    wanted = theirs(base, tape, script, concept.provenance["identifier"])
    assert compared(found, wanted, first)[1] > 1e-2
