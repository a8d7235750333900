"""Concepts and a prompt become pictures: merge, attach, draw, and keep the merge if wanted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from conceptkit.base import devices
from conceptkit.base.load_options import AS_USUAL, LoadOptions
from conceptkit.base.pipeline import STORYBOOK, Base, load
from conceptkit.base.schedulers import scheduled
from conceptkit.concepts import prompt_rewriting
from conceptkit.concepts.concept import Concept
from conceptkit.inference import draw_call
from conceptkit.inference.attach import Attachment, attach
from conceptkit.inference.draw_call import DrawCall
from conceptkit.inference.generate import guided
from conceptkit.inference.layout import LayoutWarning, PictureLayout
from conceptkit.inference.split_prompt import overlap_in
from conceptkit.merging.compose import Merge, compose
from conceptkit.pictures.contact_sheet import Row, Tile, sheet
from conceptkit.pictures.layout import layout_picture, layout_sheet
from conceptkit.registry import private_names
from conceptkit.registry.opening import opened
from conceptkit.registry.store import Entry, Registry
from conceptkit.workflows.draw_request import DrawRequest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """A picture, its seed, and what a PNG of it should say; a notebook shows it.

    layout: where its things are; None where no layout was needed.
    """

    picture: Image.Image
    seed: int
    metadata: dict[str, Any]
    layout: PictureLayout | None = None

    def _repr_png_(self) -> bytes:
        return _png(self.picture)


@dataclass(frozen=True, eq=False)
class Drawing:
    """What came of a request; a notebook shows the contact sheet.

    merge: the concepts in one, with its report. entry: of the merge, if it was kept.
    notices: sentences for the user. windows: the prompt of each window, from left to right.
    """

    request: DrawRequest
    pictures: tuple[DrawnPicture, ...]
    merge: Merge
    entry: Entry | None = None
    notices: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        """The pictures alone, in the order of their seeds."""
        return [drawn.picture for drawn in self.pictures]

    def sheet(self) -> Image.Image:
        """All pictures on one contact sheet."""
        tiles = [Tile(drawn.picture, f"seed {drawn.seed}") for drawn in self.pictures]
        return sheet(
            [Row(tiles)], title=self.request.prompt, subtitle=" + ".join(self.request.concepts), per_line=4
        )

    def layout_sheet(self) -> Image.Image | None:
        """All pictures with the parts of their things and names; None where no layout was needed."""
        shown = [(drawn, drawn.layout) for drawn in self.pictures if drawn.layout]
        if not shown:
            return None
        tiles = [layout_picture(drawn.picture, layout.regions()) for drawn, layout in shown]
        return layout_sheet(tiles, [f"seed {drawn.seed}" for drawn, _ in shown])

    @property
    def sheet_metadata(self) -> dict[str, Any]:
        """What a PNG of the contact sheet should say."""
        shared = {key: value for key, value in self.pictures[0].metadata.items() if key != "seed"}
        return {**shared, "seeds": [drawn.seed for drawn in self.pictures]}

    def _repr_png_(self) -> bytes:
        return _png(self.sheet() if len(self.pictures) > 1 else self.pictures[0].picture)


@dataclass(eq=False)
class _Session:
    """The road of one request: a base, a registry, where progress and pictures go."""

    base: Base
    registry: Registry
    progress: Progress
    on_picture: Callable[[DrawnPicture], None]
    on_notice: Callable[[str], None]
    notices: list[str] = field(default_factory=list)

    def notice(self, sentence: str) -> None:
        self.notices.append(sentence)
        self.on_notice(sentence)


def draw(
    *concepts: str,
    prompt: str,
    base: Base | str | None = None,
    device: str = devices.AUTO,
    registry: Registry | None = None,
    progress: Progress = lambda done, total, text: None,
    **options: Any,
) -> Drawing:
    """Draw concepts of the registry together.

        ck.draw("my_dog", "moongate", prompt="my_dog in front of a moongate", count=4)

    base: a loaded one, or its name; None: the one that the first concept was learned on.
    device: where a base is loaded that comes by its name.
    options: fields of `DrawRequest`, and of `LoadOptions` for a base that comes by its name.

    Raises what `DrawRequest`, `compose` and `attach` raise; a merge that cannot be drawn is not kept.
    """
    loading, others = LoadOptions.split(options)
    request = DrawRequest(concepts, prompt, **others)
    with opened(registry) as store:
        return carry_out(request, store, base=base, device=device, loading=loading, progress=progress)


def carry_out(
    request: DrawRequest,
    registry: Registry,
    *,
    base: Base | str | None = None,
    device: str = devices.AUTO,
    loading: LoadOptions = AS_USUAL,
    progress: Progress = lambda done, total, text: None,
    on_picture: Callable[[DrawnPicture], None] = lambda drawn: None,
    on_notice: Callable[[str], None] = lambda sentence: None,
) -> Drawing:
    """Merge, attach and draw what a request asks for.

    on_picture: called with each picture as soon as it is drawn. on_notice: with each sentence for the user.
    Raises what `compose` and `attach` raise, and NameTaken when the merge should be kept under a taken name.
    """
    entries = request.entries(registry)
    if base is None or isinstance(base, str):
        name = base or entries[0].summary.get("base_name", STORYBOOK)
        base = load(name, device=devices.choose(device), **loading.given)
    else:
        loading.check_unused(base.name)
    session = _Session(base, registry, progress, on_picture, on_notice)
    with scheduled(base, request.scheduler, request.num_inference_steps):
        return _carried_out(request, session, entries, _call(request, session), loading)


def _call(request: DrawRequest, session: _Session) -> dict[str, Any]:
    """What the pipeline is called with beside prompt, seeds and steps. Raises BadRecipe or BadPrompt."""
    asked = DrawCall(*(getattr(request, each.name) for each in fields(DrawCall)))
    call = draw_call.call_options(session.base, asked)
    for sentence in draw_call.notices(session.base, asked, request.num_inference_steps):
        session.notice(sentence)
    return call


def _carried_out(
    request: DrawRequest,
    session: _Session,
    entries: list[Entry],
    call: dict[str, Any],
    loading: LoadOptions,
) -> Drawing:
    """The same with everything loaded and checked."""
    base, registry = session.base, session.registry
    merge = compose(
        *request.concepts,
        base=base,
        registry=registry,
        name=request.save,
        merge_method=request.merge_method,
        padding_delta=request.padding_delta,
        progress=session.progress,
    )
    attached: Concept | Merge = merge
    words = merge.concept
    if request.save and len(entries) == 1:  # what is kept answers to `save`; the prompt has the name as given
        attached = words = merge.concept.called(entries[0].name)
    for sentence in _unmentioned(request, words):
        session.notice(sentence)
    pictures, windows = _draw(
        request, session, attached, call, _metadata(request, entries, base) | loading.given
    )
    entry = None
    if request.save:  # last, so that a merge that cannot be drawn is not kept
        entry = registry.add(request.save, merge.concept.to_bytes(), merge.concept.summary())
    return Drawing(request, pictures, merge, entry, tuple(session.notices), windows)


def _unmentioned(request: DrawRequest, concept: Concept) -> Iterator[str]:
    for name in sorted(set(concept.words) - prompt_rewriting.mentioned(request.prompt, concept.words)):
        yield f"The prompt does not mention {name!r}: write the name where the thing should be."


def _metadata(request: DrawRequest, entries: list[Entry], base: Base) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "concepts": [entry.ref for entry in entries],
        "hashes": [entry.hash for entry in entries],
        "base": private_names.public_base(base.name),
        "weights": list(request.weights.values()),
        "merge_method": request.merge_method,
        **_public(request.placement),
        "num_inference_steps": request.num_inference_steps,
        **request.drawn_as,
    }


def _public(placement: Mapping[str, Any]) -> dict[str, Any]:
    """Where things are put, for others to read: of a mask's file its name alone."""
    regions = [re.sub(r"=.*[/\\]", "=", text) for text in placement.get("regions", ())]
    return {**placement, **({"regions": regions} if regions else {})}


def _draw(
    request: DrawRequest,
    session: _Session,
    attached: Concept | Merge,
    call: dict[str, Any],
    metadata: dict[str, Any],
) -> tuple[tuple[DrawnPicture, ...], tuple[str, ...]]:
    """The pictures, and the prompt of each window."""
    base, prompt, drawn = session.base, request.prompt, []
    with (
        warnings.catch_warnings(),
        _attached(request, base, attached) as attachment,
        guided(base, request.guidance_scale, request.pag_scale) as (pipe, scales),
    ):
        warnings.simplefilter("ignore", LayoutWarning)  # all that is found or not is told below
        against = attachment.unread(request.negative_prompt or "", "negative prompt")
        for sentence in (*attachment.cut_off(prompt), *attachment.unread(prompt), *against):
            session.notice(sentence)
        windows = tuple(attachment.clauses(prompt).values())
        metadata |= {
            "guidance_scale": scales["guidance_scale"],
            "pag_scale": scales.get("pag_scale", 0.0),
            "isolate_concepts": attachment.isolate_concepts,
        }
        if windows:
            metadata["windows"] = list(windows)
            session.notice("Side by side: " + " | ".join(windows))
            if (overlap := overlap_in(prompt)) is not None:
                session.notice(f"Windows stand side by side, so {overlap!r} is not drawn; --one-frame may")
        for seed, picture in _pictures(pipe, request, scales | call, session.progress):
            layout = attachment.layout.pictures[0] if attachment.layout else None
            more = {"seed": seed, **({"layout": layout.places()} if layout else {})}
            for sentence in layout.sentences() if layout else ():
                session.notice(f"Seed {seed}: {sentence}" if request.count > 1 else sentence)
            drawn.append(DrawnPicture(picture, seed, {**metadata, **more}, layout))
            session.on_picture(drawn[-1])
    return tuple(drawn), windows


def _attached(request: DrawRequest, base: Base, attached: Concept | Merge) -> Attachment:
    return attach(
        base.pipe,
        attached,
        regions=request.regions,
        auto_regions=request.auto_regions,
        side_by_side=request.side_by_side,
        isolate_concepts=request.isolate_concepts,
        confine=request.confine,
        detail=request.detail,
    )


def _pictures(
    pipe: DiffusionPipeline, request: DrawRequest, call: dict[str, Any], progress: Progress
) -> Iterator[tuple[int, Image.Image]]:
    """One (seed, picture) after another; each has a seed of its own, so that it can be drawn again alone."""
    steps, size = request.num_inference_steps, request.batch_size
    batches = [request.seeds[start : start + size] for start in range(0, request.count, size)]
    for i, seeds in enumerate(batches):

        def after_step(step: int, i: int = i) -> None:
            progress(i * steps + step + 1, len(batches) * steps, "drawing")

        dice = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        alone = len(dice) == 1
        asked = dict(call)
        if not alone and "negative_prompt" in asked:
            asked["negative_prompt"] = [asked["negative_prompt"]] * len(dice)
        result = pipe(
            request.prompt if alone else [request.prompt] * len(dice),
            generator=dice[0] if alone else dice,
            num_inference_steps=steps,
            **draw_call.followed(pipe, after_step),
            **asked,
        )
        yield from zip(seeds, result.images, strict=True)


def _png(picture: Image.Image) -> bytes:
    data = BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()
