"""Make the storybook base and its judges: `python -m conceptkit.storybook.training --minutes N --cache DIR`.

The stages run in order; each keeps a checkpoint in the cache and trains no longer than its minutes, so that
the command can be stopped and started again. Weights are written at the end, or any time with `--stage save`.
With `--onward` everything begins as the package has it. `flow` makes the second base, of the first one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer, ResNetModel

from conceptkit.base import devices
from conceptkit.base.fingerprint import fingerprint_of
from conceptkit.storybook.training import (
    autoencoder,
    data,
    flow_command,
    judges,
    text_encoder,
    timed_training,
    tokenizer,
)
from conceptkit.storybook.training import unet as unets
from conceptkit.storybook.world import scene

PICTURES, JUDGED, SESSIONS, VARIANTS, REDRAWN = 120_000, 48_000, 2400, 4, 12_000
SHARE = {
    "vae": 0.14,
    "subject": 0.04,
    "text": 0.02,
    "denoiser": 0.64,
    "decoder": 0.06,
    "attributes": 0.06,
    "clip": 0.04,
}
GATE = 0.95
ONWARD = "unet-onward"
HERE = Path(__file__).parents[1]


def _known_judge(cache: Path, name: str) -> Path | None:
    """The package's judge, where training goes onward from the package's weights."""
    return HERE / "weights" / name if (cache / ONWARD).exists() else None


def _tokenizer(cache: Path) -> CLIPTokenizer:
    folder = cache / "tokenizer"
    if not folder.exists():
        tokenizer.train((data.caption("base", k, 0, empty=0) for k in range(12_000)), folder)
    return CLIPTokenizer.from_pretrained(str(folder))


def _vae(cache: Path) -> AutoencoderKL:
    refined = cache / "refined"
    return AutoencoderKL.from_pretrained(str(refined if refined.exists() else cache / "vae")).eval()


def train_vae(minutes: float, cache: Path) -> None:
    """Train the autoencoder."""
    if not (cache / "vae").exists():
        vae = autoencoder.train(data.pictures("base", PICTURES, cache), minutes, cache)
        vae.save_pretrained(cache / "vae")
    held_out = data.pictures("scored", 2000, cache)[:1000]
    _note(cache, vae_psnr_db=autoencoder.psnr(_vae(cache), held_out))


def train_subject(minutes: float, cache: Path) -> None:
    """The first gate: the subject must be told from its round trips before any UNet is trained."""
    clean = np.array(data.sessions("evaluators", SESSIONS, cache))
    vae = _vae(cache)
    passed = judges.round_trips(vae, clean.reshape(-1, *clean.shape[2:])).reshape(clean.shape)
    model = judges.train_subject(clean, passed, minutes, cache, _known_judge(cache, "subject"))
    model.save_pretrained(cache / "subject")
    held_out = np.array(data.sessions("scored", 300, cache))
    nouns = [judges.subject_of("scored", k).noun for k in range(len(held_out))]
    seen = judges.round_trips(vae, held_out.reshape(-1, *held_out.shape[2:])).reshape(held_out.shape)
    model = ResNetModel.from_pretrained(str(cache / "subject")).eval()
    auc = {
        kind: judges.verification_auc(model, x, nouns)
        for kind, x in (("renders", held_out), ("passed", seen))
    }
    _note(cache, subject_auc_renders=auc["renders"], subject_auc_round_trips=auc["passed"])
    if auc["passed"] < GATE:
        raise click.ClickException(
            f"the subject judge reaches an AUC of {auc['passed']:.3f} on round trips, below {GATE}: give the "
            "vae and subject stages more minutes before training the UNet"
        )


def _ids(cache: Path) -> np.ndarray:
    return data.tokenised("base", PICTURES, VARIANTS, _tokenizer(cache), cache)


def _text(cache: Path) -> CLIPTextModel:
    encoder = unets.text_encoder(_tokenizer(cache))
    encoder.load_state_dict(torch.load(cache / "text.pt", weights_only=True))
    return encoder


def train_text(minutes: float, cache: Path) -> None:
    """The text encoder learns to read the captions before anything is drawn from them."""
    if (cache / ONWARD).exists():
        return
    words = _tokenizer(cache)
    torch.manual_seed(5)
    encoder = text_encoder.train(unets.text_encoder(words), _ids(cache)[:, 0], words, minutes, cache)
    torch.save(encoder.state_dict(), cache / "text.pt")


def begin_onward(cache: Path) -> None:
    """Put the package's autoencoder, text encoder and UNet into the cache, as what the stages begin with."""
    if (cache / ONWARD).exists():
        return
    pipe = StableDiffusionPipeline.from_pretrained(str(HERE / "weights" / "pipeline"))
    pipe.tokenizer.save_pretrained(cache / "tokenizer")
    pipe.vae.save_pretrained(cache / "vae")
    torch.save(pipe.text_encoder.state_dict(), cache / "text.pt")
    pipe.unet.save_pretrained(cache / ONWARD)


def train_denoiser(minutes: float, cache: Path, device: str = "cpu") -> None:
    """Train the UNet."""
    store = cache / "latents.pt"
    if not store.exists():
        torch.save(autoencoder.encode(_vae(cache), data.pictures("base", PICTURES, cache)), store)
    latents = torch.load(store, weights_only=True)
    weights = data.weights("base", PICTURES, cache)
    known = cache / ONWARD
    model = unets.train(
        _text(cache).to(device),
        latents,
        torch.from_numpy(_ids(cache)),
        minutes,
        cache,
        weights=weights,
        onward=UNet2DConditionModel.from_pretrained(str(known)) if known.exists() else None,
    )
    torch.save(model.state_dict(), cache / "unet-average.pt")


def refine_decoder(minutes: float, cache: Path) -> None:
    """Enlarge the autoencoder and train its decoder on fixed latents, also on ones that the UNet redrew."""
    vae = autoencoder.enlarged(_vae(cache))
    latents = torch.load(cache / "latents.pt", weights_only=True)
    redrawn = _redrawn(latents[:REDRAWN], cache) if (cache / "unet-average.pt").exists() else None
    pictures = data.pictures("base", PICTURES, cache)
    autoencoder.refine(vae, pictures, latents, minutes, cache, redrawn)
    vae.save_pretrained(cache / "refined")
    _note(cache, refined_vae_psnr_db=autoencoder.psnr(vae, data.pictures("scored", 2000, cache)[:1000]))


def _redrawn(latents: torch.Tensor, cache: Path) -> torch.Tensor:
    store = cache / "redrawn.pt"
    if not store.exists():
        model = unets.unet()
        model.load_state_dict(torch.load(cache / "unet-average.pt", weights_only=True))
        empty = _tokenizer(cache)("", padding="max_length", return_tensors="pt")["input_ids"][0]
        ids = torch.from_numpy(_ids(cache)[: len(latents), 0])
        model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.save(unets.redrawn(model, _text(cache).eval(), latents, ids, empty), store)
    return torch.load(store, weights_only=True)


def train_attributes(minutes: float, cache: Path) -> None:
    """Train the judge of attributes."""
    pictures = np.array(data.pictures("evaluators", JUDGED, cache))
    known = _known_judge(cache, "attributes")
    judges.train_attributes(pictures, _vae(cache), minutes, cache, known).save_pretrained(
        cache / "attributes"
    )


def train_clip(minutes: float, cache: Path) -> None:
    """Train the judge of text and picture."""
    pictures = np.array(data.pictures("evaluators", JUDGED, cache))
    words = _tokenizer(cache)
    judges.train_clip(pictures, _vae(cache), words, minutes, cache).save_pretrained(cache / "clip")
    words.save_pretrained(cache / "clip")


def save(_: float, cache: Path, out: Path = HERE / "weights") -> None:
    """Write the pipeline and the judges in float16 safetensors, and the captions that composing preserves."""
    words = _tokenizer(cache)
    unet = unets.unet()
    average = cache / "unet-average.pt"
    unet.load_state_dict(
        torch.load(average, weights_only=True)
        if average.exists()
        else torch.load(cache / "unet.pt", weights_only=True)["average"]
    )
    pipe = StableDiffusionPipeline(
        vae=_vae(cache),
        text_encoder=_text(cache),
        tokenizer=words,
        unet=unet,
        scheduler=unets.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(out / "pipeline")
    # transformers loads in the precision that a configuration names, diffusers in float32: they must agree
    for config in (out / "pipeline").rglob("config.json"):
        told = json.loads(config.read_text())
        told.pop("_name_or_path", None)  # a folder of this machine
        more = {"dtype": "float32"} if config.parent.name == "text_encoder" else {}
        config.write_text(json.dumps(told | more, indent=2) + "\n")
    known = json.dumps(fingerprint_of(pipe).to_json())
    (out / "fingerprint.json").write_text(known + "\n")
    for name in ("subject", "attributes", "clip"):
        if (cache / name).exists():
            judge = judges.load(cache / name)
            judge.half().save_pretrained(out / name)
    if (cache / "clip").exists():
        words.save_pretrained(out / "clip")
    texts = dict.fromkeys(data.caption("base", k, 0, empty=0) for k in range(700))
    (HERE / "captions.txt").write_text("\n".join(texts) + "\n")
    held_out = [
        f"{noun}, {hue}, {place}"
        for noun in scene.CLASSES
        for hue in scene.COLOURS
        for place in scene.scenery.PLACES
        if scene.withheld(noun, hue, place)
    ]
    forms = [f"marking: {m}" for m in scene.RESERVED_MARKINGS] + ["gate: the round moongate"]
    lists = {"forms": forms, "combinations": held_out}
    (out / "held_out.json").write_text(json.dumps(lists, indent=1) + "\n")


STAGES: dict[str, Callable[..., None]] = {
    "vae": train_vae,
    "subject": train_subject,
    "text": train_text,
    "denoiser": train_denoiser,
    "decoder": refine_decoder,
    "attributes": train_attributes,
    "clip": train_clip,
    "save": save,
}


def _note(cache: Path, **figures: float) -> None:
    file = cache / "figures.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | figures, indent=1) + "\n")
    timed_training.console.print(figures)


@click.group(invoke_without_command=True)
@click.option("--minutes", default=120.0, show_default=True, help="Training time of all stages together.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("storybook-cache"), show_default=True)
@click.option(
    "--stage", type=click.Choice(list(STAGES)), multiple=True, help="Only this stage; may be repeated."
)
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--device", default="cpu", show_default=True, help="Where the UNet is trained, for example cuda."
)
@click.option("--onward", is_flag=True, help="Begin with the package's weights instead of nothing.")
@click.pass_context
def main(
    context: click.Context,
    minutes: float,
    cache: Path,
    stage: tuple[str, ...],
    threads: int,
    device: str,
    onward: bool,
) -> None:
    """Train the storybook base; stop it whenever you like and start it again."""
    if context.invoked_subcommand:
        return
    torch.set_num_threads(threads)
    cache.mkdir(parents=True, exist_ok=True)
    if onward:
        begin_onward(cache)
    for name in stage or STAGES:
        timed_training.console.rule(name)
        more = {"device": devices.choose(device)} if name == "denoiser" else {}
        STAGES[name](minutes * SHARE.get(name, 0), cache, **more)


main.add_command(flow_command.main, "flow")

if __name__ == "__main__":
    main()
