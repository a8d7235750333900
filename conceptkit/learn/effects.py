"""Whether learning has an effect: checked once captions are cut, photos cropped and masks rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import positions, spell, token_ids
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.errors import BadPhotos
from conceptkit.learn.latent_dataset import LatentDataset
from conceptkit.learn.subject import Subject
from conceptkit.learn.train_config import TrainConfig

SHOWN = 40
"""Characters of a caption in a sentence."""


def check_prompts(base: Base, subjects: Sequence[Subject], datasets: Sequence[LatentDataset]) -> None:
    """Raises BadPhotos where a prompt has lost the subject's token behind the last position that is read."""
    length = base.architecture.segments(base.pipe)[0].length
    for subject, dataset in zip(subjects, datasets, strict=True):
        ids = token_ids(base.pipe, dataset.prompts)
        seen = positions(ids, spell(base.pipe, subject.token)).any(dim=1)
        for text, there in zip(dataset.prompts, seen.tolist(), strict=True):
            if not there:
                shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
                raise BadPhotos(
                    f"{base.name} reads {length} tokens of a caption, and in {shown!r} "
                    f"{subject.name} comes after them; shorten that caption, or name {subject.name} earlier"
                )


def without_effect(
    concepts: Sequence[Concept],
    delta: Delta,
    subjects: Sequence[Subject],
    datasets: Sequence[LatentDataset],
    recipe: TrainConfig,
    first: Mapping[str, tuple[Tensor, ...]],
) -> list[str]:
    """A sentence for each photo, word and delta that learning left as it was.

    first: the rows at which tokens began.
    """
    found = []
    for subject, dataset in zip(subjects, datasets, strict=True):
        for name, counted, views in seldom_seen(subject, dataset):
            found.append(
                f"The mask of {name} covers no cell of any view of it, so that nothing was learned from that "
                "photo; paint the subject itself, in the middle of the photo."
                if not counted
                else f"The mask of {name} covers a cell in {counted} of {views} views, so that little was "
                "learned from that photo; crop the photo until the subject is in its middle."
            )
    for concept in concepts:
        moved = any(
            not torch.equal(row.cpu(), begun.cpu())
            for token, rows in concept.tokens.items()
            for row, begun in zip(rows, first[token], strict=True)
        )
        if (recipe.token_train_steps or recipe.train_token_jointly) and not moved:
            found.append(
                f"The word of {concept.name} is where it began, so nothing was learned in it; "
                "give more steps, or a higher token_learning_rate."
            )
    looks = any(concept.reference is not None for concept in concepts)
    if (
        recipe.max_train_steps
        and not looks
        and not any(bool(factors.first.any()) for factors in delta.values())
    ):
        names = " and ".join(concept.name for concept in concepts)
        found.append(f"Nothing was learned of {names} beside the word; give more steps, or a higher rate.")
    return found


def seldom_seen(subject: Subject, dataset: LatentDataset) -> list[tuple[str, int, int]]:
    """(name, views with a cell that counts, views) of photos in which fewer than half have one."""
    if not any(subject.photos.masks) or dataset.photo_of is None:
        return []
    counted = dataset.masks.flatten(1).any(dim=1).cpu()
    found = []
    for k in dataset.photo_of.unique().tolist():
        views = counted[dataset.photo_of == k]
        if 2 * int(views.sum()) < len(views):
            found.append((dataset.names[k], int(views.sum()), len(views)))
    return found
