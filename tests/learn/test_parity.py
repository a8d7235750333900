"""Published methods learn what their scripts learn: beside loops written here with torch, PEFT and diffusers.

Both sides have the same latents, noise, noise levels, prompts and first values; after 1 and 20 steps their
weights agree.
"""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig

from benchmarks.parity_tape import recording
from conceptkit.base import pipeline
from conceptkit.learn.config import config_for
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import train
from tests import tiny

TOKEN = "<my_dog>"
SMALL = {
    "num_augmented_views": 5,
    "num_class_images": 4,
    "class_image_steps": 2,
    "gradient_accumulation_steps": 1,
    "train_batch_size": 2,
    "prior_batch_size": 2,
}
PRIOR = {"prior_loss_weight": 1.0}
CLOSE = 1e-4
STEPS = [1, pytest.param(20, marks=pytest.mark.slow)]
LORA_MAPS = ["to_k", "to_q", "to_v", "to_out.0"]


def ours(pipe, shown, method, family, steps, **changes):
    """(concept, tape, recipe) of a published recipe in so many steps."""
    length = "token_train_steps" if method == "textual-inversion" else "max_train_steps"
    recipe = config_for(method, family=family, changes={**SMALL, length: steps, **changes})
    request = TrainRequest((Subject("my_dog", "dog", shown),), recipe)
    with recording() as tape:
        concept = train(request, Session(pipeline.of(pipe, "pico"))).whole
    return concept, tape, recipe


class Reader:
    """Text as the scripts read it: a token added to a tokenizer and a table that has grown by a row."""

    def __init__(self, pipe, rows):
        names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
        self.sides = [
            copy.deepcopy((getattr(pipe, t), getattr(pipe, e))) for t, e in names if hasattr(pipe, e)
        ]
        self.tables = []
        for (tokenizer, encoder), row in zip(self.sides, rows, strict=True):
            encoder.requires_grad_(False)
            tokenizer.add_tokens([TOKEN])
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            encoder.get_input_embeddings().weight.data[-1] = row[0]
            self.tables.append(encoder.get_input_embeddings().weight)

    def read(self, prompts):
        """What the UNet reads of prompts, and what else an SDXL one is given."""
        ids = [
            tokenizer(
                list(prompts), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
            ).input_ids
            for tokenizer, _ in self.sides
        ]
        if len(self.sides) == 1:
            return self.sides[0][1](ids[0])[0], None
        found = [
            encoder(one, output_hidden_states=True) for one, (_, encoder) in zip(ids, self.sides, strict=True)
        ]
        sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).repeat(len(prompts), 1)
        hidden = torch.cat([one.hidden_states[-2] for one in found], dim=-1)
        return hidden, {"text_embeds": found[1][0], "time_ids": sizes}


def descend(pipe, tape, recipe, unet, reader, learned, *, summed=False, only=None):
    """The scripts' loop over what was drawn.

    only: a table of which the last row alone has a gradient. Without a delta all tables' other rows are put
    back after each step.
    """
    before = [table.detach().clone() for table in reader.tables]
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    rate = recipe.learning_rate if recipe.rank else recipe.full_learning_rate
    rate = recipe.token_learning_rate if not recipe.max_train_steps else rate
    optimizer = torch.optim.AdamW(
        learned, lr=rate, betas=(0.9, 0.999), weight_decay=recipe.adam_weight_decay, eps=1e-8
    )
    for part in tape.parts:
        noisy = scheduler.add_noise(part.clean, part.noise, part.t)
        hidden, added = reader.read(part.prompts)
        found = unet(noisy, part.t, hidden, added_cond_kwargs=added).sample
        wanted = part.noise
        if scheduler.config.prediction_type == "v_prediction":
            wanted = scheduler.get_velocity(part.clean, part.noise, part.t)
        n = part.own
        error = F.mse_loss(found[:n], wanted[:n], reduction="none")
        if summed:
            mask = part.masks.unsqueeze(1)
            loss = ((error * mask).sum([1, 2, 3]) / mask.sum([1, 2, 3])).mean()
        elif recipe.snr_gamma:
            snr = compute_snr(scheduler, part.t[:n])
            loss = (error.mean([1, 2, 3]) * snr.clamp(max=recipe.snr_gamma) / snr).mean()
        else:
            loss = error.mean()
        if recipe.sude_weight:
            shown = found[:n], noisy[:n], part.t[:n]
            loss = loss + recipe.sude_weight * inherited(scheduler, unet, reader, shown, part.prompts[:n])
        if len(found) > n:
            loss = loss + recipe.prior_loss_weight * F.mse_loss(found[n:], wanted[n:])
        loss.backward()
        if only is not None:
            only.grad[:-1] = 0
        if recipe.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(learned, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if not recipe.max_train_steps:
            for table, first in zip(reader.tables, before, strict=True):
                table.data[:-1] = first[:-1]


def inherited(scheduler, unet, reader, shown, prompts):
    """SuDe (2403.06775) as the paper derives it: how much less the class expects where the subject's step
    leads, x_{t-1}, than anything does, -log p(x_{t-1} | x_t, class) + log p(x_{t-1} | x_t).

    Densities are those of the posterior (2006.11239, eq. 6 and 7), a mean over elements; what the class
    itself would say is the least that a sample can come to.
    """
    found, noisy, t = shown
    plain = [text.replace(f"{TOKEN} dog", "dog") for text in prompts]
    with torch.no_grad():
        kind, nothing = (
            unet(noisy, t, reader.read(texts)[0]).sample.double() for texts in (plain, [""] * len(plain))
        )
    bars = scheduler.alphas_cumprod.double()
    bar, before = (bars[k].view(-1, 1, 1, 1) for k in (t, t - 1))
    beta = 1 - bar / before
    deviation = ((1 - before) / (1 - bar) * beta).sqrt()

    def step(eps):
        clean = (noisy - (1 - bar).sqrt() * eps) / bar.sqrt()
        return (before.sqrt() * beta * clean + (bar / before).sqrt() * (1 - before) * noisy) / (1 - bar)

    def unlikely(at):
        of_class, of_any = (torch.distributions.Normal(step(eps), deviation) for eps in (kind, nothing))
        return (of_any.log_prob(at) - of_class.log_prob(at)).mean([1, 2, 3])

    own, least = unlikely(step(found.double())), unlikely(step(kind))
    return (own * (own > least)).mean()


def apart(found, wanted):
    """Relative difference of all tensors together."""
    difference = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    return (difference / sum(float(one.square().sum()) for one in wanted.values())) ** 0.5


LORAS = {
    "sd": (tiny.pico_sd, "stable-diffusion", {}),
    "sd with prior": (tiny.pico_sd, "stable-diffusion", PRIOR),
    "velocity": (lambda: tiny.pico_sd(prediction="v_prediction"), "stable-diffusion", PRIOR),
    "sdxl": (tiny.pico_sdxl, "sdxl", {}),
    "sdxl with prior": (tiny.pico_sdxl, "sdxl", PRIOR),
    "min-SNR": (tiny.pico_sd, "stable-diffusion", {"snr_gamma": 5.0}),
}


def beside(pipe, tape, recipe):
    """A LoRA of PEFT's own after the scripts' loop, by names, and whether it began as ours did."""
    unet = copy.deepcopy(pipe.unet).requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=LORA_MAPS))
    begun, theirs = {name: p for name, p in unet.named_parameters() if p.requires_grad}, []
    with torch.no_grad():
        for name, down in tape.downs.items():
            own = begun[f"{name}.lora_A.default.weight"]
            theirs.append(own.flatten().clone())
            own.copy_(down)
    mine = torch.cat([down.flatten() for down in tape.downs.values()])
    descend(pipe, tape, recipe, unet, Reader(pipe, tape.rows), list(begun.values()))
    return {name: value.detach() for name, value in begun.items()}, float(
        mine.std() / torch.cat(theirs).std()
    )


def factors_of(concept):
    return {
        f"{name}.lora_{'AB'[k]}.default.weight": part
        for name, (up, down) in concept.delta.items()
        for k, part in enumerate((down, up))
    }


def ups_of(weights):
    return {name: value for name, value in weights.items() if "lora_B" in name}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", LORAS)
def test_a_dreambooth_lora_is_that_of_the_script(shown, case, steps):
    build, family, changes = LORAS[case]
    pipe = build()
    concept, tape, recipe = ours(pipe, shown, "dreambooth", family, steps, **changes)
    wanted, size = beside(pipe, tape, recipe)
    assert 0.9 < size < 1.1, "it begins as PEFT's gaussian does"
    assert 2 * len(tape.downs) == len(wanted) and len(tape.parts) == steps
    assert apart(factors_of(concept), ups_of(wanted)) < CLOSE
    assert apart(factors_of(concept), wanted) < CLOSE


def test_sude_is_that_of_the_paper(shown):
    pipe = tiny.pico_sd(seed=1)
    changes = {"sude_weight": 1e5, "sude_timestep_weighting": "paper"}
    concept, tape, recipe = ours(pipe, shown, "dreambooth", "stable-diffusion", 4, **changes)
    wanted, _ = beside(pipe, tape, recipe)
    without, _ = beside(pipe, tape, replace(recipe, sude_weight=0.0))
    assert apart(factors_of(concept), ups_of(wanted)) < CLOSE
    assert apart(ups_of(without), ups_of(wanted)) > 0.1, "not all samples are truncated"


@pytest.mark.parametrize("steps", STEPS)
def test_full_dreambooth_is_that_of_the_script_on_linear_maps(shown, steps):
    pipe = tiny.pico_sd()
    concept, tape, recipe = ours(pipe, shown, "dreambooth-full", "stable-diffusion", steps)
    unet = copy.deepcopy(pipe.unet).requires_grad_(False)
    weights = {name: unet.get_submodule(name).weight for name in concept.delta}
    for weight in weights.values():
        weight.requires_grad_()
    descend(pipe, tape, recipe, unet, Reader(pipe, tape.rows), list(weights.values()))
    moved = {n: w.detach() - pipe.unet.get_submodule(n).weight.detach() for n, w in weights.items()}
    assert recipe.adam_weight_decay and recipe.prior_loss_weight
    assert apart({name: f.dense() for name, f in concept.delta.items()}, moved) < 5e-3, "W + D is rounded"
    whole = {name: pipe.unet.get_submodule(name).weight + f.dense() for name, f in concept.delta.items()}
    assert apart(whole, {name: weight.detach() for name, weight in weights.items()}) < 1e-6


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("family", ["stable-diffusion", "sdxl"])
def test_textual_inversion_is_that_of_the_script(shown, family, steps):
    pipe = tiny.pico_sdxl() if family == "sdxl" else tiny.pico_sd()
    concept, tape, recipe = ours(pipe, shown, "textual-inversion", family, steps)
    reader = Reader(pipe, tape.rows)
    for table in reader.tables:
        table.requires_grad_()
    before = [table.detach().clone() for table in reader.tables]
    descend(pipe, tape, recipe, copy.deepcopy(pipe.unet).requires_grad_(False), reader, reader.tables)
    for table, row, first in zip(reader.tables, concept.tokens[TOKEN], before, strict=True):
        moved, wanted = row[0] - first[-1], table.detach()[-1] - first[-1]
        assert apart({"row": row[0]}, {"row": table.detach()[-1]}) < CLOSE
        assert apart({"row": moved}, {"row": wanted}) < 2e-3 and float(wanted.abs().max()) > 1e-3


@pytest.mark.parametrize("steps", STEPS)
def test_custom_diffusion_is_that_of_the_script(shown, steps):
    pipe = tiny.pico_sd()
    concept, tape, recipe = ours(
        pipe, shown, "custom-diffusion", "stable-diffusion", steps, initializer_token="dog"
    )
    unet = copy.deepcopy(pipe.unet).requires_grad_(False)
    reader = Reader(pipe, tape.rows)
    weights = {name: unet.get_submodule(name).weight for name in concept.delta}
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in weights) and len(weights) == 14

    def still_at_bos(module, inputs, made):
        return torch.cat([made[:, :1].detach(), made[:, 1:]], dim=1)

    for name, weight in weights.items():
        weight.requires_grad_()
        unet.get_submodule(name).register_forward_hook(still_at_bos)
    (table,) = reader.tables
    table.requires_grad_()
    first = table.detach()[-1].clone()
    (vocabulary,) = (pipe.text_encoder.get_input_embeddings().weight,)
    assert torch.equal(first, vocabulary[pipe.tokenizer.convert_tokens_to_ids("dog</w>")])
    descend(pipe, tape, recipe, unet, reader, [table, *weights.values()], summed=True, only=table)
    moved = {n: w.detach() - pipe.unet.get_submodule(n).weight.detach() for n, w in weights.items()}
    assert apart({name: f.dense() for name, f in concept.delta.items()}, moved) < 1e-3
    assert apart({"row": concept.tokens[TOKEN][0][0]}, {"row": table.detach()[-1]}) < 1e-5
    assert apart({"row": concept.tokens[TOKEN][0][0] - first}, {"row": table.detach()[-1] - first}) < 2e-3


def test_a_recipe_of_one_loop_is_not_that_of_another(shown):
    """The tolerance of these tests tells a loop from one that differs in a single setting."""
    pipe = tiny.pico_sd()
    concept, tape, recipe = ours(pipe, shown, "dreambooth", "stable-diffusion", 20, max_grad_norm=1e-3)
    wanted, _ = beside(pipe, tape, replace(recipe, max_grad_norm=1.0))
    assert apart(factors_of(concept), ups_of(wanted)) > 10 * CLOSE
