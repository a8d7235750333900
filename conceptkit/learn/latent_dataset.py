"""Photos as the loop sees them: augmented views, encoded once, with their masks and prompts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from conceptkit.base.autoencoder import upcast
from conceptkit.base.memory import pictures_at_once
from conceptkit.base.pipeline import Base
from conceptkit.concepts import prompt_rewriting as names
from conceptkit.data.augmentation import Framing, View, augment
from conceptkit.data.photos import PhotoSet
from conceptkit.errors import BadPhotos
from conceptkit.learn.subject import Subject
from conceptkit.learn.view_options import USUAL, ViewOptions

# Half of the prompts go on after the subject: what is learned at the end of text is silent in longer ones.
CONTEXTS = (
    "photo of a {}",
    "a photo of a {}",
    "a {}",
    "a picture of a {}",
    "photo of a {} as it is",
    "a photo of a {} seen here",
    "a {} in this photo",
    "a picture of a {} today",
)
STYLE_CONTEXTS = (
    "a picture in the style of {}",
    "a painting in the style of {}",
    "a drawing in the style of {}",
    "in the style of {}",
    "a picture in the style of {} as it is",
    "a place in the style of {} seen here",
    "something in the style of {} in this picture",
    "art in the style of {} today",
)


@dataclass(frozen=True, eq=False)
class LatentDataset:
    """latents (n, c, h, w), masks (n, h, w), and the index of each view's prompt in `prompts`.

    deviations (n, c, h, w): of what the autoencoder gives, whose means the latents are; None: means alone.
    photo_of (n,): the index of each view's photo in `names`, where they are of one subject.
    """

    latents: Tensor
    masks: Tensor
    prompt_of: Tensor
    prompts: tuple[str, ...]
    photo_of: Tensor | None = None
    names: tuple[str, ...] = ()
    deviations: Tensor | None = None


def picture_size(base: Base) -> int:
    """Pixels on a side of what the base draws."""
    return base.architecture.picture_size(base.pipe)


def latent_dataset(
    base: Base,
    photos: PhotoSet,
    words: str,
    count: int,
    seed: int,
    *,
    kind: str = "subject",
    contexts: Sequence[str | None] = (),
    options: ViewOptions = USUAL,
) -> LatentDataset:
    """`count` views of the photos in turn; `words` is what a prompt calls the subject.

    contexts: prompts of the photos, with "{}" for the words; None and none at all: that of the options, or
        one of CONTEXTS. Where a photo has a mask the loss counts there alone.
    Raises BadPhotos when the masks leave nothing of any view.
    """
    size, cell = picture_size(base), base.architecture.cell(base.pipe)
    small = photos.for_size(size)
    rng = np.random.default_rng((seed, 1))
    framing, flip = options.framing(size, kind), options.random_flip
    usual = STYLE_CONTEXTS if kind == "style" else CONTEXTS
    views = []
    for k in range(count):
        photo = k % len(small)
        twin = copy.deepcopy(rng)
        view = augment(
            small.pictures[photo], size, rng, cell, hflip=flip, framing=framing, centered=options.center_crop
        )
        mask = photos.masks[photo] if photos.masks else None
        whole = small.pictures[photo]
        views.append(
            view if mask is None else _masked(view, mask, whole, twin, framing, flip, options.center_crop)
        )
    texts = []
    for k, view in enumerate(views):
        own = contexts[k % len(small)] if contexts else None
        context = usual[int(rng.integers(len(usual)))]
        prefix = "" if kind == "style" else view.prefix
        told = own or options.instance_prompt or context
        texts.append(_prompt(prefix, told, words, options.auto_caption))
    if any(photos.masks) and not any(view.mask.any() for view in views):
        names = ", ".join(name for name, mask in zip(photos.names, photos.masks, strict=True) if mask)
        raise BadPhotos(
            f"The masks of {names} leave nothing to learn from: at {size} pixels no cell of {cell} x {cell} "
            "is half white in the middle of the photo; paint the subject itself, or leave --masks out"
        )
    made = _dataset(base, views, texts, options.sample_latents)
    return replace(made, photo_of=torch.arange(count) % len(small), names=photos.names)


def still_dataset(
    base: Base,
    photos: PhotoSet,
    words: str,
    kind: str = "subject",
    contexts: Sequence[str | None] = (),
    auto_caption: str = "",
) -> LatentDataset:
    """Every photo once, whole and unmoved; the rest as for `latent_dataset`."""
    size, cell = picture_size(base), base.architecture.cell(base.pipe)
    rng, unmoved = np.random.default_rng(0), Framing(still=1.0)
    views = []
    for photo, mask in zip_longest(photos.for_size(size).pictures, photos.masks):
        twin = copy.deepcopy(rng)
        view = augment(photo, size, rng, cell, hflip=False, framing=unmoved)
        views.append(view if mask is None else _masked(view, mask, photo, twin, unmoved, hflip=False))
    usual = STYLE_CONTEXTS[0] if kind == "style" else CONTEXTS[0]
    texts = contexts or (None,) * len(views)
    return _dataset(base, views, [_prompt("", text or usual, words, auto_caption) for text in texts])


def contexts_of(subject: Subject, run: Sequence[Subject] = ()) -> tuple[str | None, ...]:
    """The photos' captions as prompts with "{}" for the subject's words.

    The words take the place of the subject's name, or else of its class noun; where a caption has neither,
    they go before it, and those of a style after it. Names of others in the same `run` become their words.
    """
    known = {other.name: other.words for other in (*run, subject)}
    return tuple(None if text is None else _context(subject, text, known) for text in subject.photos.captions)


def joined(datasets: Sequence[LatentDataset]) -> LatentDataset:
    """The views of several subjects in one."""
    if len(datasets) == 1:
        return datasets[0]
    prompts = tuple(dict.fromkeys(text for one in datasets for text in one.prompts))
    indices = [prompts.index(one.prompts[int(k)]) for one in datasets for k in one.prompt_of]
    return LatentDataset(
        latents=torch.cat([one.latents for one in datasets]),
        masks=torch.cat([one.masks for one in datasets]),
        prompt_of=torch.tensor(indices),
        prompts=prompts,
        deviations=None
        if any(one.deviations is None for one in datasets)
        else torch.cat([one.deviations for one in datasets if one.deviations is not None]),
    )


def _dataset(base: Base, views: Sequence[View], texts: Sequence[str], sampled: bool = False) -> LatentDataset:
    prompts = tuple(dict.fromkeys(texts))
    pixels = torch.from_numpy(np.stack([view.pixels for view in views]))
    return LatentDataset(
        latents=encode(base, pixels),
        deviations=deviations(base, pixels) if sampled else None,
        masks=torch.from_numpy(np.stack([view.mask for view in views])).to(base.device),
        prompt_of=torch.tensor([prompts.index(text) for text in texts]),
        prompts=prompts,
    )


def _masked(
    view: View,
    mask: Image.Image,
    photo: Image.Image,
    rng: np.random.Generator,
    framing: Framing,
    hflip: bool = True,
    centered: bool = False,
) -> View:
    """The view with its mask cut to the subject's, by the same dice that placed the photo."""
    size, cells = view.pixels.shape[-1], view.mask.shape[-1]
    shaped = mask.convert("L").resize(photo.size).convert("RGB")
    moved = augment(shaped, size, rng, size // cells, hflip=hflip, framing=framing, centered=centered).pixels[
        0
    ]
    share = ((moved + 1) / 2).reshape(cells, size // cells, cells, size // cells).mean(axis=(1, 3))
    return View(view.pixels, view.mask * (share >= 0.5).astype(np.float32), view.prefix, view.box)


def _context(subject: Subject, caption: str, known: Mapping[str, str]) -> str:
    named = names.replace(caption, known)
    marked = named.replace(subject.words, "\0").replace(subject.token, "\0")
    if "\0" not in marked and subject.noun:
        words = marked.split()
        noun = subject.noun.split()
        for k in range(len(words) - len(noun) + 1):
            if [word.strip(",.;:").lower() for word in words[k : k + len(noun)]] == [n.lower() for n in noun]:
                end = words[k + len(noun) - 1]
                tail = end[len(end.rstrip(",.;:")) :]
                marked = " ".join([*words[:k], "\0" + tail, *words[k + len(noun) :]])
                break
    if "\0" not in marked:
        marked = f"{marked} in the style of \0" if subject.kind == "style" else f"a \0, {marked}"
    return marked.replace("{", "{{").replace("}", "}}").replace("\0", "{}", 1).replace("\0", subject.words)


def _prompt(prefix: str, context: str, words: str, auto_caption: str) -> str:
    """A view's words belong to the thing: "a far away " gives "photo of a far away <my_dog> dog running"."""
    return context.format(prefix.removeprefix("a ") + words + (f" {auto_caption}" if auto_caption else ""))


@torch.no_grad()
def encode(base: Base, pixels: Tensor) -> Tensor:
    """Latent means of pictures (n, 3, h, w) in [-1, 1], scaled and shifted as the base's denoiser reads them.

    At most 8 at a time, and fewer where they are large: then the autoencoder takes more memory than all else.
    """
    batch = pictures_at_once(pixels.shape[-1] * pixels.shape[-2])
    with upcast(getattr(base.pipe, "vae", None)):
        parts = [base.architecture.latents(base.pipe, part) for part in pixels.split(batch)]
    return torch.cat(parts).to(base.device)


@torch.no_grad()
def deviations(base: Base, pixels: Tensor) -> Tensor:
    """How far latents of pictures (n, 3, h, w) are spread around the means that `encode` gives."""
    batch = pictures_at_once(pixels.shape[-1] * pixels.shape[-2])
    with upcast(getattr(base.pipe, "vae", None)):
        parts = [base.architecture.latent_deviations(base.pipe, part) for part in pixels.split(batch)]
    return torch.cat(parts).to(base.device)
