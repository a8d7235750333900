"""The weights in the package: they load in plain libraries, fit their world, and learn from pixels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, CLIPTokenizer

from conceptkit import storybook
from conceptkit.base import pipeline as bases
from conceptkit.base.families import FAMILIES
from conceptkit.base.fingerprint import Fingerprint, fingerprint_of
from conceptkit.data import photos
from conceptkit.evaluate import metrics, scorers
from conceptkit.features.captions import captions
from conceptkit.inference.generate import draw, draw_with
from conceptkit.registry.store import Registry
from conceptkit.storybook.training import autoencoder, data, unet
from conceptkit.storybook.world import scene
from conceptkit.workflows import add
from tests import tiny


@pytest.fixture(scope="module")
def base():
    return bases.load()


@pytest.fixture(scope="module")
def judge():
    return scorers.SubjectJudge()


def subjects(noun, count, seed=5):
    rng = np.random.default_rng(seed)
    return [scene.draw_subject(rng, noun, "scored") for _ in range(count)]


def test_plain_diffusers_loads_the_pipeline_and_draws():
    pipe = StableDiffusionPipeline.from_pretrained(storybook.path())
    pipe.set_progress_bar_config(disable=True)
    assert {p.dtype for m in (pipe.unet, pipe.vae, pipe.text_encoder) for p in m.parameters()} == {
        torch.float32
    }
    picture = pipe("photo of a dog", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
    assert np.asarray(picture).std() > 5


def test_the_storybook_is_known_by_what_it_is(tmp_path):
    """By another path to it, as a copy, as parts without a path, and with weights that moved a little."""
    source = storybook.path()
    (tmp_path / "link").symlink_to(source)
    shutil.copytree(source, tmp_path / "copy")
    whole = StableDiffusionPipeline.from_pretrained(source)
    parts = StableDiffusionPipeline(**whole.components, requires_safety_checker=False)
    copy = StableDiffusionPipeline.from_pretrained(str(tmp_path / "copy"))
    row = FAMILIES[bases.STORYBOOK]
    for pipe in (whole, parts):
        known = bases.of(pipe)
        assert (known.name, known.family) == (bases.STORYBOOK, row)
    for path in (f"{source}/", str(tmp_path / "link")):
        assert bases.of(StableDiffusionPipeline.from_pretrained(path)).name == bases.STORYBOOK
    assert bases.of(copy).family is bases.load(str(tmp_path / "copy")).family is row
    assert bases.of(copy).name == str(tmp_path / "copy"), "what is elsewhere is found there again"
    assert captions(bases.of(copy).family.name) == row.captions.read_text("utf-8").splitlines()
    with torch.no_grad():
        for weight in parts.unet.parameters():
            weight += 0.1 * weight.std(correction=0) * torch.randn(weight.shape)
    tuned = bases.of(parts)
    assert tuned.family is row and tuned.name == "StableDiffusionPipeline", "a relative has its defaults"


def test_a_foreign_unet_at_the_storybooks_path_is_not_the_storybook():
    """Whatever path a pipeline says that it comes from: its weights tell what it is."""
    own = StableDiffusionPipeline.from_pretrained(storybook.path())
    foreign = tiny.unet(own.text_encoder.config.hidden_size)
    known = bases.of(StableDiffusionPipeline.from_pretrained(storybook.path(), unet=foreign))
    assert known.family is FAMILIES["stable-diffusion"] and known.name == "StableDiffusionPipeline"


def test_what_is_stored_of_the_storybook_is_of_its_weights(base):
    stored = FAMILIES[bases.STORYBOOK].fingerprint
    assert Fingerprint.from_json(json.loads(stored.read_text("utf-8"))) == fingerprint_of(base.pipe)
    assert bases.of(tiny.pico_sd()).family is FAMILIES["stable-diffusion"]


def test_the_tokenizer_reads_every_letter_and_says_where_text_ends(base):
    tokenizer, encoder = base.encoders[0]
    assert isinstance(tokenizer, CLIPTokenizer)
    text = "zyxwvutsrqponmlkjihgfedcba 0123456789"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert encoder.config.eos_token_id == tokenizer.eos_token_id


def test_the_judges_load_by_the_classes_that_judge_real_pictures():
    assert AutoModel.from_pretrained(storybook.path("subject")).config.model_type == "resnet"
    labels = AutoModelForImageClassification.from_pretrained(storybook.path("attributes")).config.id2label
    assert "class:dog" in labels.values()


def test_weights_are_small():
    """Of the first base, and what the second one adds to it: files of equal bytes are stored once in git."""
    files = [f for f in Path(storybook.path()).parent.rglob("*") if f.is_file()]
    second = [f for f in files if f.is_relative_to(storybook.path("flow"))]
    first = {f.read_bytes() for f in files if f not in second}
    assert sum(map(len, first)) < 40e6
    assert sum(map(len, {f.read_bytes() for f in second} - first)) < 16e6


def test_the_autoencoder_redraws_the_world(base):
    shots = np.stack([np.asarray(p) for p in scene.photos(subjects("dog", 1)[0], 6, 0)])
    assert autoencoder.psnr(base.pipe.vae, shots) > 25


def test_an_enlarged_autoencoder_is_the_same_function():
    torch.manual_seed(0)
    small = autoencoder.build().eval()
    for p in small.parameters():  # norms begin with equal weights, biases with none
        p.data += 0.1 * torch.randn_like(p)
    large = autoencoder.enlarged(small)
    assert large.num_parameters() > 1.5 * small.num_parameters()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        z = small.encode(x).latent_dist.mean
        torch.testing.assert_close(large.encode(x).latent_dist.mean, z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(large.decode(z).sample, small.decode(z).sample, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="only to twice as many"):
        autoencoder.enlarged(small, channels=(16, 60, 96))


def test_a_decoder_is_refined_on_each_picture_with_its_own_latents_and_redrawn_ones(monkeypatch, tmp_path):
    grey = np.linspace(0, 255, 40).astype(np.uint8)
    pictures = np.broadcast_to(grey[:, None, None, None], (40, 64, 64, 3))
    latents = (torch.from_numpy(grey) / 127.5 - 1)[:, None, None, None].expand(40, 8, 16, 16)
    exact = torch.nn.Sequential(torch.nn.Upsample(scale_factor=4), torch.nn.Conv2d(8, 3, 1, bias=False))
    torch.nn.init.constant_(exact[1].weight, 1 / 8)
    vae = autoencoder.build()
    vae.post_quant_conv, vae.decoder = torch.nn.Identity(), exact
    losses = []

    def look(model, loss_of, **_):
        losses.append(max(loss_of(step).item() for step in range(3)))
        return model

    monkeypatch.setattr(autoencoder.timed_training, "train", look)
    for redrawn in (None, latents[:10], 0.2 + latents[:10], latents[:10].flip(0)):
        autoencoder.refine(vae, pictures, latents, 1.0, tmp_path, redrawn)
    assert max(losses[:2]) < 0.05 < min(losses[2:]), losses


def test_what_the_unet_redraws_is_the_picture_with_its_own_faults(base):
    captions = [data.caption("scored", k, 0, empty=0) for k in range(4)]
    shots = np.stack([np.asarray(scene.render(data.scene("scored", k))) for k in range(4)])
    tokenizer, encoder = base.encoders[0]
    ids = tokenizer([*captions, ""], padding="max_length", return_tensors="pt").input_ids
    latents = autoencoder.encode(base.pipe.vae, shots)
    near, far = (
        unet.redrawn(base.pipe.unet, encoder, latents, ids[:4], ids[4], farthest=farthest)
        for farthest in (100, 700)
    )
    off = [(z.float() - latents.float()).square().mean().item() for z in (near, far)]
    # a latent has variance 1, so that of another picture would be off by 2
    assert 0 < 2 * off[0] < off[1] < 1


@pytest.mark.slow
def test_the_subject_judge_tells_individuals_of_one_class_apart_after_a_round_trip(base, judge):
    shots = [scene.photos(subject, 4, k) for k, subject in enumerate(subjects("cat", 20))]
    z = judge.embed(scorers.round_trips(base.pipe.vae, [shot for session in shots for shot in session]))
    who = np.repeat(np.arange(20), 4)
    score, same = (z @ z.T).numpy(), who[:, None] == who[None]
    upper = np.triu(np.ones_like(same), 1).astype(bool)
    won = (score[upper & same][:, None] > score[upper & ~same][None]).mean()
    assert won > 0.9


def test_the_base_draws_the_thing_and_the_place_that_it_is_told(base):
    told = [(noun, place) for noun in ("dog", "car", "house", "flower") for place in ("snow", "moon")]
    prompts = [f"photo of a {noun} {scene.scenery.PLACES[place][1][0]}" for noun, place in told]
    drawn = draw(base, prompts, [0] * len(prompts), steps=12)
    attributes = scorers.AttributeJudge()
    logits = attributes.logits(drawn)
    nouns, places = (attributes.best(logits, group) for group in ("class", "place"))
    assert sum(a == b for a, (b, _) in zip(nouns, told, strict=True)) >= 6
    assert sum(a == b for a, (_, b) in zip(places, told, strict=True)) >= 7


def test_photos_unlike_the_storybook_are_named_as_such(base):
    """Clouds of 1/f noise have the statistics of photographs, and nothing of the storybook in them."""
    dice = np.random.default_rng(0)
    waves = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    waves[0, 0] = 1
    clouds = [
        np.stack([np.fft.ifft2(np.fft.fft2(dice.normal(size=(64, 64))) / waves).real for _ in range(3)], -1)
        for _ in range(4)
    ]
    shots = [Image.fromarray((127 + 50 * c / c.std()).clip(0, 255).astype(np.uint8)) for c in clouds]
    (sentence,) = add._faint(base, photos.PhotoSet(tuple(shots), ("",) * 4, ""))
    assert "--base" in sentence
    drawn = photos.PhotoSet(tuple(scene.photos(subjects("dog", 1)[0], 5, 0)), ("",) * 5, "")
    assert not add._faint(base, drawn)


@pytest.mark.slow
def test_what_is_learned_comes_from_the_pixels(base, judge, tmp_path):
    """Two subjects that no one has drawn before, and no twins: each sheet looks like its own photos."""
    seed = int.from_bytes(np.random.default_rng().bytes(4), "big")
    print(f"subjects of seed {seed}")  # pytest shows it when the test fails
    sets = [
        (subject, scene.photos(subject, 5, k)) for k, subject in enumerate(subjects("cat", 12, seed=seed))
    ]
    seen = [judge.embed(shots) for _, shots in sets]
    other = next(k for k in range(1, len(sets)) if metrics.similarity(seen[0], seen[k]) < 0.6)
    real, found = [], []
    for k, shots in enumerate((sets[0][1], sets[other][1])):
        folder = tmp_path / f"cat{k}"
        folder.mkdir()
        for n, shot in enumerate(shots):
            shot.save(folder / f"{n}.png")
        learned = add.add(
            f"kitty{k}", folder, class_noun="cat", base=base, registry=Registry(tmp_path / "home")
        )
        real.append(judge.embed(photos.read(folder).pictures))
        found.append(judge.embed(draw_with(base, learned.concept, f"photo of a kitty{k}", range(6))))
    for k in (0, 1):
        assert metrics.similarity(found[k], real[k]) > metrics.similarity(found[k], real[1 - k]) + 0.1
