"""The layout of pictures: who stands where, and what the base itself draws of the class nouns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conceptkit.errors import BadPrompt, BadRegion
from conceptkit.inference.layout_masks import Cells, find_parts, soft_masks
from conceptkit.inference.prompt_scene import PromptScene
from conceptkit.pictures.layout import Region

MOST_THINGS = 8
"""Things in one frame; of more none has enough cells."""
LEAST_ROOM = 0.04
"""Share of the picture that regions must leave for each thing that has none."""


class LayoutWarning(UserWarning):
    """A thing that is not where a prompt has it."""


@dataclass(frozen=True)
class Placed:
    """Where one thing of a prompt is.

    box: x0, y0, x1, y1 of its mask as fractions of the picture. area: its share of the picture. found:
    whether the base drew it, or the user has given its place. windows: whether the base can draw it side by
    side with the others.
    """

    called: str
    noun: str
    box: tuple[float, float, float, float]
    area: float
    found: bool
    given: bool = False
    windows: bool = True

    def text(self) -> str:
        """One sentence."""
        if self.given:
            return f"{self.called} is in the region that it was given."
        where = _where(self.box)
        if self.found:
            return f"{self.called} is {where}, on {self.area:.0%} of the picture."
        region = f"a --region for {self.called}"
        other = f", {region}, or --side-by-side" if self.windows else f", or {region}"
        return (
            f"{self.called} was not found: the base drew no {self.noun}, so it is put {where}; try another "
            f"seed{other}."
        )


@dataclass(frozen=True, eq=False)
class PictureLayout:
    """One picture: masks (N, H, W) on the cells of its latents, 0 to 1, and where each of the N things is.

    tries: how many drawings of the class nouns it took. notes: sentences on what is wrong beside things that
    are not found; remarks: on what is worth knowing. changed (H, W): cells in which the picture is not the
    base's own, where that is more than the masks. seen (N, h, w): what tells each thing's outline, see
    `Watch.outlining`, where that was watched.
    """

    scene: PromptScene
    masks: Tensor
    things: tuple[Placed, ...]
    tries: int = 1
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    changed: Tensor | None = None
    seen: Tensor | None = None

    def regions(self) -> list[Region]:
        """Its parts with their names, to be drawn over the picture."""
        return [
            Region(thing.called, mask.numpy(), thing.found)
            for thing, mask in zip(self.things, self.masks, strict=True)
        ]

    def places(self) -> list[dict[str, Any]]:
        """Where each thing is, as JSON."""
        return [
            {"name": thing.called, "box": [round(edge, 3) for edge in thing.box], "found": thing.found}
            for thing in self.things
        ]

    @property
    def complete(self) -> bool:
        """Whether every thing was found, in the order that the prompt asks for."""
        return all(thing.found for thing in self.things) and not self.notes

    @property
    def rank(self) -> tuple[int, int]:
        """The larger the better: things that were found, fewer of them in wrong places."""
        return sum(thing.found for thing in self.things), -len(self.notes)

    def sentences(self) -> tuple[str, ...]:
        """What was found where, and what was not."""
        again = (
            (f"The first layout lacked something, so layout {self.tries} was taken, of another noise.",)
            if self.tries > 1
            else ()
        )
        return (*(thing.text() for thing in self.things), *self.notes, *self.remarks, *again)


@dataclass(frozen=True, eq=False)
class Layout:
    """The layouts of the pictures of one call, and what the base predicted on its way to them.

    predictions: of the first calls of the denoiser, (rows, c, H, W). steps: calls of a whole drawing.
    noise: the pictures' first latents where they are not those of the call itself. usable: whether it was
    drawn as far as it is needed. channels: of the latents, where predictions have more. begun, latents
    (pictures, c, H, W): what the base's own pictures began with, and ended at, where they were drawn to their
    end.
    """

    pictures: tuple[PictureLayout, ...]
    predictions: tuple[Tensor, ...]
    steps: int
    noise: Tensor | None = None
    usable: bool = True
    channels: int | None = None
    begun: Tensor | None = None
    latents: Tensor | None = None

    def with_remark(self, text: str) -> Layout:
        """The same with another sentence on what is worth knowing, of each picture."""
        pictures = tuple(replace(one, remarks=(*one.remarks, text)) for one in self.pictures)
        return replace(self, pictures=pictures)

    def redrawn(self, inside: Tensor, lost: Sequence[Sequence[int]]) -> Layout:
        """The same of pictures whose parts were drawn by themselves, which changed the cells `inside`
        (pictures, 1, H, W); lost: the numbers of each picture's things that came to nothing."""
        pictures = tuple(
            replace(one, changed=cells[0].float().cpu(), remarks=(*one.remarks, *_redrawn(one, things)))
            for one, cells, things in zip(self.pictures, inside, lost, strict=True)
        )
        return replace(self, pictures=pictures)

    @property
    def complete(self) -> bool:
        """Whether every picture shows every thing where it should be."""
        return all(picture.complete for picture in self.pictures)

    def masks(self, names: Sequence[str]) -> Tensor:
        """(pictures, N, H, W): where each concept of `names` may be."""
        return torch.stack(
            [
                torch.stack(
                    [
                        sum(
                            (m for m, t in zip(p.masks, p.scene.things, strict=True) if t.name == name),
                            torch.zeros(p.masks.shape[1:]),
                        ).clamp(max=1)
                        for name in names
                    ]
                )
                for p in self.pictures
            ]
        )


def lay_out(
    scene: PromptScene,
    seen: Tensor,
    guide: Tensor | None,
    given: Mapping[str, np.ndarray],
) -> PictureLayout:
    """One picture's layout, from attention (N, h, w) to its N nouns and its latents (c, H, W).

    given: cells (G, G) of the concepts whose place the user has said.
    """
    size = seen.shape[1:]
    own: dict[int, Cells] = {}
    for i, thing in enumerate(scene.things):
        if thing.name is not None and thing.name in given:
            cells = torch.from_numpy(given[thing.name]).float()[None, None]
            own[i] = (F.interpolate(cells, tuple(size), mode="area")[0, 0] >= 0.5).numpy()
    nouns = [thing.noun for thing in scene.things]
    plural = [i for i, thing in enumerate(scene.things) if thing.plural]
    parts = find_parts(seen.double().cpu().numpy(), nouns, scene.left_of, own, plural, scene.over)
    masks = soft_masks(parts.masks, guide, scene.over)
    for i in own:  # as fine as the user has drawn it, and before all others
        fine = torch.from_numpy(given[str(scene.things[i].name)]).float()[None, None]
        masks[i] = F.interpolate(fine, tuple(masks.shape[1:]), mode="area")[0, 0]
    if own:
        taken = masks[list(own)].amax(dim=0)
        masks = torch.stack([m if i in own else m * (1 - taken) for i, m in enumerate(masks)])
    placed = tuple(
        Placed(thing.called, thing.noun, _box(mask), float(mask.mean()), bool(found), i in own)
        for i, (thing, mask, found) in enumerate(zip(scene.things, parts.masks, parts.found, strict=True))
    )
    notes = (*_misplaced(scene, placed), *_spare(placed, parts.spare))
    remarks = (*_parted(placed, parts.parted), *_in_one_region(placed))
    return PictureLayout(scene, masks, placed, notes=notes, remarks=remarks)


def check_room(scene: PromptScene, given: Mapping[str, np.ndarray]) -> None:
    """Raises BadPrompt for more things than have room, BadRegion when regions leave none for another."""
    count = len(scene.things)
    if count > MOST_THINGS:
        raise BadPrompt(
            f"{count} things have no room in one frame, which holds {MOST_THINGS}; name fewer, or draw them "
            "with side_by_side"
        )
    others = [thing.called for thing in scene.things if thing.name not in given]
    taken = [given[name] for name in scene.names if name in given]
    if others and taken:
        left = 1 - float(np.any(taken, axis=0).mean())
        if left < LEAST_ROOM * len(others):
            raise BadRegion(
                f"The regions leave {left:.0%} of the picture for {' and '.join(others)}; make them smaller, "
                "or give all of them a region"
            )


def _misplaced(scene: PromptScene, placed: Sequence[Placed]) -> tuple[str, ...]:
    """A sentence for each pair that stands the other way round than the prompt says."""
    said = []
    for a, b in scene.left_of:
        middles = [(placed[k].box[0] + placed[k].box[2]) / 2 for k in (a, b)]
        if placed[a].found and placed[b].found and middles[0] > middles[1]:
            said.append(
                f"The base drew {placed[a].called} to the right of {placed[b].called}; try another seed, or "
                f"--region {placed[a].called}=left."
            )
    return tuple(said)


def _spare(placed: Sequence[Placed], spare: Cells) -> tuple[str, ...]:
    """A sentence for each class of which the base drew more than the prompt names."""
    of_class: dict[str, list[str]] = {}
    for thing, more in zip(placed, spare, strict=True):
        if more:
            of_class.setdefault(thing.noun, []).append(thing.called)
    return tuple(
        f"The base drew another {noun} beside {' and '.join(called)}, which stays a plain {noun}; "
        "try another seed."
        for noun, called in of_class.items()
    )


def _parted(placed: Sequence[Placed], parted: Cells) -> tuple[str, ...]:
    """A sentence on things of one class that the base drew as one."""
    called = [thing.called for thing, cut in zip(placed, parted, strict=True) if cut]
    if not called:
        return ()
    who = " and ".join(dict.fromkeys(called)) if len(set(called)) > 1 else f"{len(called)} of {called[0]}"
    return (f"The base drew {who} as one shape, which is shared out between them.",)


def _redrawn(picture: PictureLayout, lost: Sequence[int]) -> tuple[str, ...]:
    """Sentences on the concepts that were drawn by themselves."""
    things = picture.scene.things
    names = list(dict.fromkeys(t.name for i, t in enumerate(things) if t.name and i not in lost))
    were = "was" if len(names) == 1 else "were"
    drawn = f"{' and '.join(names)} {were} drawn at full size and set in; --no-detail leaves it out."
    return (
        *((drawn,) if names else ()),
        *(
            f"{things[i].called} could not be told from its background at full size, so what the base drew "
            "stays there; try another seed, or --no-detail."
            for i in lost
        ),
    )


def _in_one_region(placed: Sequence[Placed]) -> tuple[str, ...]:
    """A sentence for each concept that is named several times and has one region."""
    named = Counter(thing.called for thing in placed if thing.given)
    return tuple(
        f"The prompt names {called} {count} times, all of them in its one region."
        for called, count in named.items()
        if count > 1
    )


def _box(mask: Cells) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return (0.0, 0.0, 1.0, 1.0)
    h, w = mask.shape
    return (
        float(columns.min() / w),
        float(rows.min() / h),
        float((columns.max() + 1) / w),
        float((rows.max() + 1) / h),
    )


def _where(box: tuple[float, float, float, float]) -> str:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across = "on the left" if x < 0.4 else "on the right" if x > 0.6 else "in the middle"
    return across + (" above" if y < 0.33 else " below" if y > 0.67 else "")
