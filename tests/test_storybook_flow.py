"""How the second base learns of the first: velocities, shards, resuming, and the folder that comes of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

from conceptkit import storybook
from conceptkit.base import pipeline as bases
from conceptkit.base.text_features import encode
from conceptkit.evaluate.scorers import AttributeJudge
from conceptkit.inference.generate import draw
from conceptkit.storybook.training import (
    __main__,
    autoencoder,
    data,
    distillation,
    flow,
    flow_command,
    flow_pipeline,
    timed_training,
    unet,
)
from conceptkit.storybook.world import scene

SCHEDULE = unet.scheduler()


@pytest.fixture(scope="module")
def first():
    return StableDiffusionPipeline.from_pretrained(storybook.path())


@pytest.fixture(scope="module")
def pipe(first):
    """The flow's pipeline, with random weights in every part of a transformer of two layers."""
    torch.manual_seed(0)
    model = flow.transformer(192 + flow_pipeline.WORDS_WIDTH, layers=2, width=40)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return flow_pipeline.pipeline(first, model)


def tokens(pipe, *prompts):
    return pipe.tokenizer(list(prompts), padding="max_length", return_tensors="pt").input_ids


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_velocity_is_noise_minus_picture_as_the_scheduler_finds_them():
    """`step` of the scheduler converts a v-prediction to the picture by formulas of its own."""
    t = torch.tensor([0, 1, 300, 640, 998, 999])
    noisy, predicted = randn(6, 8, 16, 16), randn(6, 8, 16, 16, seed=1)
    SCHEDULE.set_timesteps(1000)
    found = distillation.velocity(predicted, noisy, t, SCHEDULE)
    for k in range(len(t)):
        a = SCHEDULE.alphas_cumprod[t[k]]
        picture = SCHEDULE.step(predicted[k], int(t[k]), noisy[k]).pred_original_sample
        noise = (noisy[k] - a.sqrt() * picture) / (1 - a).sqrt()
        torch.testing.assert_close(found[k], noise - picture, rtol=1e-4, atol=1e-4)


def test_flow_times_have_the_signal_to_noise_ratio_of_their_timesteps():
    s = flow_times = distillation.flow_times(SCHEDULE)
    clean, noise, t = randn(3, 8, 16, 16), randn(3, 8, 16, 16, seed=1), torch.tensor([5, 500, 999])
    a, s = SCHEDULE.alphas_cumprod[t][:, None, None, None], s[t][:, None, None, None]
    path = (1 - s) * clean + s * noise
    torch.testing.assert_close(
        path * (a.sqrt() + (1 - a).sqrt()), SCHEDULE.add_noise(clean, noise, t), rtol=1e-5, atol=1e-6
    )
    assert (flow_times.diff() > 0).all() and flow_times[-1] == 1


def test_what_the_teacher_knows_is_near_the_velocity_of_the_sample(first):
    """Noisy latents are on the picture's own path, and what the UNet makes of them points along it."""
    teacher = distillation.Teacher(first.unet, flow_pipeline.projected(first.text_encoder), SCHEDULE)
    shots = np.stack([np.asarray(scene.render(data.scene("scored", k))) for k in range(8)])
    clean = autoencoder.encode(first.vae, shots).float()
    ids = tokens(first, *(data.caption("scored", k, 0, empty=0) for k in range(8)))
    batch = teacher.targets(clean, ids, seed=3, batch=5)
    s = distillation.flow_times(SCHEDULE)[batch.timestep.long()][:, None, None, None]
    sample = (batch.noisy.float() - clean) / s  # (1 - s) x + s e minus x, over s
    assert sample.mean().abs() < 0.1 and sample.var().item() == pytest.approx(2, rel=0.2), (
        "noise minus picture"
    )
    off = [(sample - v.float()).square().mean().item() for v in (batch.velocity, batch.velocity.roll(1, 0))]
    assert off[0] < 0.6 < 2 < off[1]


@pytest.mark.parametrize("zeros", [0, 1, 20])
def test_one_row_of_zeros_counts_as_many(pipe, zeros):
    context, pooled = flow.conditions((pipe.text_encoder, pipe.text_encoder_2), tokens(pipe, "a red dog", ""))
    noisy, s = randn(2, 8, 16, 16), torch.tensor([0.2, 0.9])
    rows = torch.cat([context, torch.zeros(2, zeros, context.shape[-1])], 1)
    plain = pipe.transformer
    kept = plain.attn_processors
    with torch.no_grad():
        expected = plain(noisy, rows, pooled, 1000 * s, return_dict=False)[0]
        without = plain(noisy, context, pooled, 1000 * s, return_dict=False)[0]
        plain.set_attn_processor(flow.JointAttention())
        batch = distillation.Batch(noisy, noisy, torch.zeros(2).long(), tokens(pipe, "", ""))
        found = flow.predict(plain, batch, s, (context, pooled), zeros)
        plain.set_attn_processor(kept)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (zeros == 0) == torch.allclose(found, without, atol=1e-4)


def test_the_flow_reads_what_the_first_base_reads(first, pipe):
    ids = tokens(first, "a red dog next to a small cat on the moon")
    known, read = first.text_encoder(ids), pipe.text_encoder(ids, output_hidden_states=True)
    assert torch.equal(read.last_hidden_state, known.last_hidden_state)
    assert torch.equal(read.text_embeds, known.pooler_output)
    norm = first.text_encoder.state_dict()
    scale, shift = (
        next(x for n, x in norm.items() if n.endswith(f"final_layer_norm.{p}")) for p in ("weight", "bias")
    )
    last = torch.nn.functional.layer_norm(read.hidden_states[-2], (192,), scale, shift)
    torch.testing.assert_close(last, known.last_hidden_state)


def test_training_reads_text_as_the_pipeline_does(pipe):
    text = "a red dog next to a small cat on the moon"
    encoders = pipe.text_encoder, pipe.text_encoder_2
    context, pooled = flow.conditions(encoders, tokens(pipe, text))
    hidden, _, vector, _ = pipe.encode_prompt(text, None, None, do_classifier_free_guidance=False)
    assert torch.equal(hidden[:, : context.shape[1]], context) and torch.equal(vector, pooled)
    assert hidden.shape[1] == context.shape[1] + flow.MOST_ZEROS and not hidden[:, context.shape[1] :].any()


def test_the_second_encoder_tells_words_apart(pipe):
    encoder = pipe.text_encoder_2
    words = encoder(tokens(pipe, "dog", "cat", "red"), output_hidden_states=True).hidden_states[-2][:, 1]
    assert torch.cdist(words, words)[~torch.eye(3, dtype=bool)].min() > 0.5 * words.norm(dim=1).mean()


def write(cache, first, count, monkeypatch):
    """Shards of four scenes each, of eight scenes that are noise."""
    monkeypatch.setattr(distillation, "BLOCK", 4)
    pictures = np.random.default_rng(0).integers(256, size=(8, 64, 64, 3), dtype=np.uint8)
    ids = tokens(first, *(f"a dog and {k} cats" for k in range(16))).reshape(8, 2, -1).numpy()
    teacher = distillation.Teacher(first.unet, flow_pipeline.projected(first.text_encoder), SCHEDULE)
    distillation.write_shards(teacher, first.vae, pictures, ids, count, cache)
    return ids


def test_shards_are_written_once_and_read_as_they_come(first, tmp_path, monkeypatch):
    ids = write(tmp_path, first, 2, monkeypatch)
    shards = distillation.Shards(tmp_path, np.array([1.0, 0, 0, 0, 1, 0, 0, 0]))
    shards.refresh()
    before = {file: file.stat().st_mtime_ns for file in shards.files}
    write(tmp_path, first, 3, monkeypatch)
    assert len(before) == 2 and all(file.stat().st_mtime_ns == at for file, at in before.items())
    seen = shards.sample(np.random.default_rng(0), 50)
    assert {tuple(row) for row in seen.ids.tolist()} == {tuple(ids[k, 0]) for k in (0, 4)}, "by weight"
    shards.refresh()
    seen = shards.sample(np.random.default_rng(0), 50)
    assert {tuple(row) for row in seen.ids.tolist()} == {
        tuple(ids[k, v]) for k, v in ((0, 0), (4, 0), (0, 1))
    }
    assert len({tuple(x.tolist()) for x in seen.noisy[:, 0, 0]}) == 3, "each with a noise of its own"


class Interrupted(Exception):
    pass


def test_a_stopped_training_goes_on_bit_for_bit(first, pipe, tmp_path, monkeypatch):
    write(tmp_path, first, 2, monkeypatch)
    encoders = pipe.text_encoder, pipe.text_encoder_2

    def run(checkpoint, stop_at=None):
        clock = iter(range(0, 10_000, 25))  # a checkpoint after every step
        fake = SimpleNamespace(process_time=lambda: next(clock), monotonic=None)
        monkeypatch.setattr(timed_training, "time", fake)
        torch.manual_seed(1)
        model = flow.transformer(192 + flow_pipeline.WORDS_WIDTH, layers=1, width=40)
        shards = distillation.Shards(tmp_path, np.ones(8))
        sample, calls = shards.sample, iter(range(100))

        def interrupted(*args):
            if next(calls) == stop_at:
                raise Interrupted
            return sample(*args)

        shards.sample = interrupted
        flow.train(model, encoders, shards, SCHEDULE, 2.0, tmp_path / checkpoint, batch=8)

    run("whole.pt")
    with pytest.raises(Interrupted):
        run("stopped.pt", stop_at=3)
    assert torch.load(tmp_path / "stopped.pt", weights_only=True)["step"] == 3
    run("stopped.pt")
    whole, stopped = (torch.load(tmp_path / f, weights_only=True) for f in ("whole.pt", "stopped.pt"))
    assert whole["step"] == stopped["step"] == 5
    for part in ("model", "average"):
        assert whole[part].keys() == stopped[part].keys()
        assert all(torch.equal(value, stopped[part][name]) for name, value in whole[part].items()), part


def test_every_matrix_of_the_flow_learns(first, tmp_path, monkeypatch):
    """From closed gates on, within a few steps; none is moved by its decay alone."""
    write(tmp_path, first, 2, monkeypatch)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(timed_training, "time", SimpleNamespace(process_time=lambda: next(clock)))
    encoders = flow_pipeline.projected(first.text_encoder), flow_pipeline.words_encoder(first.text_encoder)
    model = flow.transformer(192 + flow_pipeline.WORDS_WIDTH, layers=2, width=40)
    before = {name: value.clone() for name, value in model.named_parameters()}
    flow.train(
        model, encoders, distillation.Shards(tmp_path, np.ones(8)), SCHEDULE, 1.0, tmp_path / "flow.pt", 8
    )
    most = 6 * flow.LEARNING_RATE * timed_training.WEIGHT_DECAY
    unasked = "transformer_blocks.1.attn.add_q_proj.weight"  # nothing is asked of the last block's text
    for name, value in model.named_parameters():
        if value.ndim > 1 and name != unasked:
            assert (value - before[name]).abs().max() > most * before[name].abs().max(), name


def test_plain_diffusers_loads_the_folder_and_draws_in_any_size(first, pipe, tmp_path):
    flow_pipeline.save(pipe, tmp_path)
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    known = StableDiffusion3Pipeline.from_pretrained(str(tmp_path), **absent)
    known.set_progress_bar_config(disable=True)
    parts = known.transformer, known.vae, known.text_encoder, known.text_encoder_2
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    for size in ({}, {"width": 96, "height": 64}, {"width": 128, "height": 128}):
        (picture,) = known("a dog", num_inference_steps=2, **size).images
        assert picture.size == (size.get("width", 64), size.get("height", 64))
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / vae).read_bytes() == (flow_command.FIRST / vae).read_bytes(), "the file is the first's"


def test_the_flow_is_small():
    weights = flow.transformer(192 + flow_pipeline.WORDS_WIDTH).num_parameters()
    text = sum(p.numel() for p in flow_pipeline.projected(flow_command._first().text_encoder).parameters())
    assert weights <= 8e6 and 2 * (weights + text) < 15.5e6


@pytest.mark.parametrize(("stage", "missing"), [("learn", "no shards"), ("save", "no flow.pt")])
def test_a_stage_says_which_one_comes_before_it(tmp_path, stage, missing):
    done = CliRunner().invoke(__main__.main, ["flow", "--stage", stage, "--cache", str(tmp_path)])
    assert done.exit_code == 1 and missing in done.output and "--stage" in done.output


@pytest.fixture(scope="module")
def base():
    return bases.load("storybook-flow")


def test_the_base_in_the_package_draws_the_thing_and_the_place_that_it_is_told(base):
    told = [(noun, place) for noun in ("car", "house", "gate", "chair") for place in ("snow", "beach")]
    prompts = [f"photo of a red {noun} {scene.scenery.PLACES[place][1][0]}" for noun, place in told]
    attributes = AttributeJudge()
    logits = attributes.logits(draw(base, prompts, range(len(prompts)), steps=12, batch=8))
    nouns, places, colours = (attributes.best(logits, group) for group in ("class", "place", "colour"))
    assert sum(a == b for a, (b, _) in zip(nouns, told, strict=True)) >= 5
    assert sum(a == b for a, (_, b) in zip(places, told, strict=True)) >= 7
    assert colours.count("red") >= 6


def test_the_base_in_the_package_is_known_however_it_is_loaded(base):
    pipe = StableDiffusion3Pipeline.from_pretrained(
        storybook.path("flow"), text_encoder_3=None, tokenizer_3=None
    )
    again = bases.of(pipe)
    assert (again.name, again.family.name) == ("storybook-flow", "storybook-flow")
    assert again.fingerprint == base.fingerprint and len(base.text_site) == 1


def test_no_rows_stand_for_a_t5_that_never_was(base):
    features = encode(base.pipe, ["a dog"])
    assert features.hidden.shape == (1, base.pipe.tokenizer_max_length, base.width)
    assert base.architecture.draw_options(base.pipe) == {"max_sequence_length": 0}
