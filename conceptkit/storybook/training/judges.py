"""The storybook's own judges, small models of the classes that judge real pictures too.

`subject`: who is it? A ResNetModel in DINO's place, trained so that photos of one individual lie together.
`attributes`: what is to be seen? A ResNetForImageClassification with one sigmoid per public attribute.
`clip`: does the picture follow the words? A CLIPModel trained on pictures and captions.
All are trained on subjects that the base never saw, on clean, degraded and autoencoded pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from conceptkit.storybook.training import data, timed_training
from conceptkit.storybook.training.autoencoder import to_tensor
from conceptkit.storybook.world.scene import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    MATERIALS,
    PATTERNS,
    Scene,
    draw_subject,
)
from conceptkit.storybook.world.scenery import PLACES, STYLES
from conceptkit.storybook.world.subject import Subject

PASSED = 3  # one in so many pictures goes through the autoencoder

ATTRIBUTES: tuple[str, ...] = (
    *(f"class:{noun}" for noun in CLASSES),
    *(f"colour:{hue}" for hue in COLOURS),
    *(f"place:{place}" for place in PLACES),
    *(f"surface:{s}" for s in PATTERNS + MATERIALS),
    *(f"accessory:{a}" for a in ACCESSORIES),
    *(f"style:{s}" for s in STYLES),
    *(f"state:{noun}:{state}" for noun, spec in CLASSES.items() for state in (spec.rest, *spec.states)),
)
_INDEX = {name: k for k, name in enumerate(ATTRIBUTES)}


def labels(scene: Scene) -> np.ndarray:
    """One number per attribute: 1 where the scene has it, nan where the picture does not tell."""
    y = np.zeros(len(ATTRIBUTES), dtype=np.float32)
    for f in scene.figures:
        y[_INDEX[f"class:{f.subject.noun}"]] = 1
        y[_INDEX[f"state:{f.subject.noun}:{f.state}"]] = 1
        if f.subject.hue and f.surface not in MATERIALS:
            y[_INDEX[f"colour:{f.subject.hue}"]] = 1
        if f.surface != "plain":
            y[_INDEX[f"surface:{f.surface}"]] = 1
        if f.accessory:
            y[_INDEX[f"accessory:{f.accessory}"]] = 1
    if scene.place:
        y[_INDEX[f"place:{scene.place}"]] = 1
    colours = slice(_INDEX["colour:red"], _INDEX["colour:red"] + len(COLOURS))
    if scene.style:
        y[_INDEX[f"style:{scene.style}"]] = 1
    if scene.style or any(f.subject.hue is None for f in scene.figures):
        y[colours] = np.where(y[colours] == 1, 1, np.nan)
    if scene.style == "pencil":
        y[colours] = np.nan
    return y


def _trunk(**more: object) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=40,
        hidden_sizes=[40, 80, 128, 176],
        depths=[2, 2, 2, 1],
        layer_type="basic",
        **more,  # type: ignore[arg-type]
    )


def degrade(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Flips, small shifts and zooms, soft focus and noise, as generated pictures have them."""
    n = len(x)
    if rng.uniform() < 0.5:
        x = x.flip(-1)
    scale = torch.from_numpy(rng.uniform(0.88, 1.12, n).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.1, 0.1, (n, 2)).astype(np.float32))
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    x = F.grid_sample(
        x,
        F.affine_grid(theta, list(x.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    if rng.uniform() < 0.35:
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.lerp(x, blurred, float(rng.uniform(0.3, 1.0)))
    if rng.uniform() < 0.35:
        x = x + 0.08 * torch.randn_like(x)
    return x


@torch.no_grad()
def round_trips(vae: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """What is left of pictures after the autoencoder, uint8 (n, 64, 64, 3)."""
    out = []
    for k in range(0, len(pictures), 200):
        y = vae.decode(vae.encode(to_tensor(pictures[k : k + 200])).latent_dist.mean).sample
        out.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def train_subject(
    clean: np.ndarray, passed: np.ndarray, minutes: float, cache: Path, onward: Path | None = None
) -> ResNetModel:
    """Supervised contrastive learning over photo sessions (2004.11362, eq. 2), distractors of one class.

    onward: the folder of a judge to go on from.
    """
    torch.manual_seed(2)
    model = load(onward) if onward else ResNetModel(_trunk())
    nouns = np.array([subject_of("evaluators", k).noun for k in range(len(clean))])
    members = {noun: np.flatnonzero(nouns == noun) for noun in CLASSES}
    both = (clean, passed)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((31, step))
        torch.manual_seed(step)
        chosen = rng.choice(list(CLASSES), 3, replace=False)
        who = np.concatenate([rng.choice(members[noun], 14, replace=False) for noun in chosen])
        shots = np.stack([rng.choice(clean.shape[1], 3, replace=False) for _ in who])
        x = np.stack(
            [both[int(rng.integers(2))][k, j] for k, row in zip(who, shots, strict=True) for j in row]
        )
        with timed_training.half():
            z = F.normalize(model(degrade(to_tensor(x), rng)).pooler_output.flatten(1).float(), dim=1)
        similarity = (z @ z.T / 0.1).fill_diagonal_(-1e4)
        same = torch.from_numpy(np.repeat(who, 3)[:, None] == np.repeat(who, 3)[None]).fill_diagonal_(False)
        return -similarity.log_softmax(1)[same].mean()

    return timed_training.train(
        model, loss_of, minutes=minutes, lr=1.5e-3, checkpoint=cache / "subject.pt", decay=0.99
    )  # type: ignore[return-value]


def subject_of(split: str, index: int) -> Subject:
    """The subject of photo session `index` of a split."""
    return draw_subject(np.random.default_rng((data.seed_of(split) + 100, index)), split=split)


def _mixed(pictures: np.ndarray, passed: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """The picked pictures, autoencoded where that was done."""
    return np.stack([passed[k] if k < len(passed) else pictures[k] for k in picks])


def train_attributes(
    pictures: np.ndarray, vae: AutoencoderKL, minutes: float, cache: Path, onward: Path | None = None
) -> ResNetForImageClassification:
    """One sigmoid per public attribute, on the evaluators' own pictures, one in PASSED autoencoded.

    onward: the folder of a judge to go on from.
    """
    torch.manual_seed(3)
    named = {"id2label": dict(enumerate(ATTRIBUTES)), "label2id": _INDEX}
    model = (
        load(onward)
        if onward
        else ResNetForImageClassification(_trunk(problem_type="multi_label_classification", **named))
    ).to(memory_format=torch.channels_last)
    targets = torch.from_numpy(np.stack([labels(data.scene("evaluators", k)) for k in range(len(pictures))]))
    passed = round_trips(vae, pictures[: len(pictures) // PASSED])

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((32, step))
        torch.manual_seed(step)
        picks = rng.integers(len(pictures), size=96)
        x = _mixed(pictures, passed, picks)
        y = targets[torch.from_numpy(picks)]
        with timed_training.half():
            logits = model(degrade(to_tensor(x), rng)).logits.float()
        told = ~y.isnan()
        return F.binary_cross_entropy_with_logits(logits[told], y[told]) * 20

    return timed_training.train(  # type: ignore[return-value]
        model,
        loss_of,
        minutes=minutes,
        lr=2e-3,
        checkpoint=cache / "attributes.pt",
        decay=0.99,
        hold=0.3,
        muon=True,
    )


def train_clip(
    pictures: np.ndarray, vae: AutoencoderKL, tokenizer: CLIPTokenizer, minutes: float, cache: Path
) -> CLIPModel:
    """Contrastive picture-caption learning (Radford et al. 2021) on the evaluators' own pictures."""
    torch.manual_seed(4)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=5,
        image_size=64,
        patch_size=8,
    )
    model = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    )
    variants = 3
    ids = torch.from_numpy(
        np.stack(
            [
                tokenizer(
                    [data.caption("evaluators", k, v, empty=0) for v in range(variants)],
                    padding="max_length",
                    truncation=True,
                    return_tensors="np",
                )["input_ids"]
                for k in range(len(pictures))
            ]
        )
    )
    passed = round_trips(vae, pictures[: len(pictures) // PASSED])

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((33, step))
        torch.manual_seed(step)
        picks = rng.choice(len(pictures), 128, replace=False)
        x = degrade(to_tensor(_mixed(pictures, passed, picks)), rng)
        tokens = ids[torch.from_numpy(picks), torch.from_numpy(rng.integers(variants, size=len(picks)))]
        longest = int((tokens == tokenizer.eos_token_id).int().argmax(1).max()) + 1
        with timed_training.half():
            out: Tensor = model(input_ids=tokens[:, :longest], pixel_values=x, return_loss=True).loss
        return out

    return timed_training.train(
        model, loss_of, minutes=minutes, lr=1e-3, checkpoint=cache / "clip.pt", decay=0.99
    )  # type: ignore[return-value]


def load(folder: Path) -> PreTrainedModel:
    """A judge, in float32, by the class that its configuration names."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model: PreTrainedModel = getattr(transformers, kind).from_pretrained(str(folder), dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def embed(model: PreTrainedModel, pictures: np.ndarray) -> Tensor:
    """Unit subject embeddings (n, d) of uint8 pictures (n, 64, 64, 3)."""
    parts = [
        model(to_tensor(pictures[k : k + 200])).pooler_output.flatten(1) for k in range(0, len(pictures), 200)
    ]
    return F.normalize(torch.cat(parts), dim=1)


def verification_auc(model: PreTrainedModel, sessions: np.ndarray, nouns: Sequence[str]) -> float:
    """Area under the curve of same against different subjects of one class; sessions (s, 6, 64, 64, 3)."""
    s, k = sessions.shape[:2]
    z = embed(model, sessions.reshape(s * k, *sessions.shape[2:]))
    who, kind = np.repeat(np.arange(s), k), np.repeat(np.asarray(nouns), k)
    upper = np.triu_indices(s * k, 1)
    of_one_class = (kind[:, None] == kind[None])[upper]
    score = (z @ z.T).numpy()[upper][of_one_class]
    same = (who[:, None] == who[None])[upper][of_one_class]
    ranks = rankdata(score)
    positives = same.sum()
    return float((ranks[same].sum() - positives * (positives + 1) / 2) / (positives * (~same).sum()))
