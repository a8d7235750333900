"""What the tests of learning share: a recipe of a few steps, photos of noise, a pico base."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.data import photos as pictures
from conceptkit.learn.config import DEFAULT_CONFIGS, TrainConfig
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session, quiet
from conceptkit.learn.subject import Subject
from conceptkit.learn.token_init import init_rows
from conceptkit.learn.trainer import Outcome, learn, train
from conceptkit.rng import hash_of

TINY = TrainConfig(
    "custom",
    token_train_steps=2,
    max_train_steps=3,
    rank=2,
    train_batch_size=2,
    prior_batch_size=2,
    num_class_images=4,
    class_image_steps=2,
    num_augmented_views=6,
)
SEEDS = [0, 1, 2]


def method(name: str, **more) -> TrainConfig:
    """A method's recipe in a few steps."""
    recipe = DEFAULT_CONFIGS[name]
    short = {
        field: getattr(TINY, field)
        for field in ("train_batch_size", "prior_batch_size", "num_class_images", "class_image_steps")
    }
    token, look = (2 if recipe.token_train_steps else 0), (3 if recipe.max_train_steps else 0)
    rank = min(recipe.rank, 2)
    return replace(
        recipe,
        **short,
        num_augmented_views=6,
        token_train_steps=token,
        max_train_steps=look,
        rank=rank,
        **more,
    )


def start(base, photos, name="my_dog", recipe=None):
    """Where the word of `teach` begins."""
    return init_rows(base, "dog", (recipe or TINY).token_init_noise, hash_of(0, name, photos.digest))


def draw_photos(folder: Path, seeds) -> Path:
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 255, (36, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def teach(pico: bases.Base, shown: pictures.PhotoSet, recipe: TrainConfig = TINY, **more) -> Concept:
    return learn(pico, shown, "my_dog", more.pop("noun", "dog"), recipe, **more)


def outcome(pico: bases.Base, shown: pictures.PhotoSet, recipe: TrainConfig = TINY, **more) -> Outcome:
    beside = {k: more.pop(k) for k in ("captions", "masks") if k in more}
    kind = more.pop("kind", "subject")
    subject = Subject("my_dog", more.pop("noun", "dog"), replace(shown, **beside), kind)
    return learn_together(pico, [subject], recipe, **more)


def learn_together(
    base, subjects, recipe, *, name=None, seed=0, registry=None, progress=quiet, checkpoints=None
) -> Outcome:
    """Several subjects in one run."""
    request = TrainRequest(tuple(subjects), recipe, name, seed)
    return train(request, Session(base, registry, progress), checkpoints)


def ups(concept: Concept) -> torch.Tensor:
    return torch.cat([factors.first for factors in concept.delta.values()])


def values(concept: Concept) -> torch.Tensor:
    """All that the delta holds, whatever its maps' widths, and the token's rows."""
    parts = [factor.flatten() for factors in concept.delta.values() for factor in factors]
    return torch.cat([*parts, *(row.flatten() for rows in concept.tokens.values() for row in rows)])
