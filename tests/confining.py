"""Layouts by hand, for the tests of what is drawn into them."""

from weakref import WeakKeyDictionary

import torch

from conceptkit.inference import confined_drawing, layout_cache
from conceptkit.inference.layout import PictureLayout, Placed
from tests.tiny import pico_concept

WHOLE = (0.0, 0.0, 1.0, 1.0)
EVERYWHERE, NOWHERE = (slice(None), slice(None)), (slice(0), slice(0))
LEFT, RIGHT = (slice(None), slice(0, 3)), (slice(None), slice(5, 8))


def two(pipe):
    return pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1, rank=3)


def place(monkeypatch, *boxes, found=True, replayed=0.0, laid_out=1.0, sparse=0.0):
    """Lay out by hand: each thing in turn has the cells of a slice of rows and one of columns."""

    def lay_out(scene, seen, guide, given):
        assert seen.shape[0] == len(scene.things) and torch.isfinite(seen).all()
        masks = torch.zeros(len(scene.things), *guide.shape[1:])
        for mask, box in zip(masks, boxes, strict=False):
            mask[box] = 1
        there = found if isinstance(found, bool) else found.pop(0)
        placed = tuple(Placed(t.called, t.noun, WHOLE, 0.5, there) for t in scene.things)
        return PictureLayout(scene, masks, placed)

    monkeypatch.setattr(confined_drawing, "lay_out", lay_out)
    monkeypatch.setattr(layout_cache, "_known", WeakKeyDictionary())  # no layout of another hand
    monkeypatch.setattr(confined_drawing, "REPLAYED", replayed)
    monkeypatch.setattr(confined_drawing, "LAID_OUT", laid_out)
    monkeypatch.setattr(confined_drawing, "SPARSE", sparse)


def calls_of_the_unet(pipe, draw):
    """How many calls of the UNet a drawing takes."""
    counted = []
    hook = pipe.unet.conv_in.register_forward_hook(lambda *_: counted.append(1))
    try:
        draw()
    finally:
        hook.remove()
    return len(counted)
