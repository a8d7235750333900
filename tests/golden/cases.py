"""What the golden files hold: what is learned, merged, drawn and exported, in few steps. No conceptkit here.

Names of files follow from the names of these rows, so a row that was written is never changed: add another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FEW = {"batch": 2, "prior_batch": 2, "prior_size": 4, "prior_steps": 2, "views": 6}
WORD = {**FEW, "token_steps": 2}
LOOK = {**FEW, "steps": 3}
BOTH = {**WORD, **LOOK}
DOG, GATE = {"my_dog": "dog"}, {"moongate": "gate"}


@dataclass(frozen=True)
class Case:
    """One run of learning.

    photos: folder of photos by name of a concept. nouns: class by name. changes: fields of the recipe.
    prior: a folder of class pictures. slow: whether only the slow tests learn it again.
    """

    name: str
    base: str
    method: str
    changes: Mapping[str, Any]
    photos: Mapping[str, str] = field(default_factory=lambda: DOG)
    nouns: Mapping[str, str] = field(default_factory=lambda: DOG)
    kind: str = "subject"
    rank: int | None = None
    masks: bool = False
    prior: str | None = None
    slow: bool = True

    @property
    def concepts(self) -> list[str]:
        """The names of what it learns; of several subjects also all of them as one."""
        return [*self.photos, *(["both"] if len(self.photos) > 1 else [])]


@dataclass(frozen=True)
class Merging:
    """A merge of "case/concept" files.

    beside: what the registry must hold. touchy: a rounding decides how many rows count, as a pico base reads
    noise; then nothing can be said of the numbers on another machine.
    """

    name: str
    base: str
    how: str
    sources: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    beside: tuple[str, ...] = ()

    @property
    def touchy(self) -> bool:
        return self.base == "pico" and self.how in ("soft", "constrained")


@dataclass(frozen=True)
class Picture:
    """A drawing: of "concepts/case/name" or "merges/name" files. options: of `attach`."""

    name: str
    base: str
    sources: tuple[str, ...]
    prompt: str
    steps: int = 4
    seed: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False


CASES = (
    Case("custom", "pico", "custom", BOTH, slow=False),
    Case("custom-diffusion", "pico", "custom-diffusion", LOOK, slow=False),
    Case("custom-diffusion-full", "pico", "custom-diffusion", LOOK, rank=0),
    Case("dreambooth", "pico", "dreambooth", LOOK, slow=False),
    Case("dreambooth-full", "pico", "dreambooth-full", LOOK),
    Case("textual-inversion", "pico", "textual-inversion", WORD, slow=False),
    Case("vico", "pico", "vico", LOOK, slow=False),
    Case("sude", "pico", "custom", {**BOTH, "sude": 8.0}, {"my_dog": "one"}),
    Case("style", "pico", "custom", BOTH, {"my_style": "gate"}, {}, kind="style"),
    Case("joint", "pico", "custom", BOTH, DOG | GATE, DOG | GATE),
    Case("sude-own", "pico", "custom-diffusion", {**LOOK, "sude": 2.0, "sude_prompts": "own"}),
    Case("captioned", "pico", "custom", BOTH, {"my_dog": "captioned"}, masks=True, prior="dog"),
    Case("described", "pico", "custom", {**BOTH, "begin": "described", "validate": 1}),
    Case("extracted", "pico", "dreambooth-full", {**LOOK, "extract": 2}),
    Case("edges", "pico-v", "dreambooth", {**LOOK, "edges": 1.0, "accumulate": 2}),
    Case("two-encoders", "pico-xl", "custom", BOTH),
    Case("two-encoders-lora", "pico-xl", "dreambooth", LOOK, rank=2),
    Case("two-encoders-vico", "pico-xl", "vico", LOOK, rank=2),
    Case("storybook", "storybook", "custom", BOTH),
    Case("storybook-one", "storybook", "custom", {**BOTH, "sude": 8.0}, {"my_dog": "one"}),
    Case("storybook-gate", "storybook", "custom", BOTH, GATE, GATE),
    Case("storybook-dreambooth", "storybook", "dreambooth", LOOK, rank=2),
    Case("storybook-custom-diffusion", "storybook", "custom-diffusion", LOOK, rank=2),
)

_JOINT = ("joint/my_dog", "joint/moongate")
_STORY = ("storybook/my_dog", "storybook-gate/moongate")

MERGES = (
    *(
        Merging(how, "pico", how, _JOINT)
        for how in ("soft", "constrained", "routed", "sum", "average", "svd", "ties")
    ),
    Merging("joint", "pico", "joint", _JOINT, beside=("joint/both",)),
    Merging("weighted", "pico", "soft", ("custom/my_dog", "joint/moongate"), (0.5, 1.5)),
    Merging("of-two-methods", "pico", "soft", ("dreambooth/my_dog", "joint/moongate")),
    Merging("with-a-style", "pico", "constrained", ("custom-diffusion/my_dog", "style/my_style")),
    Merging("storybook", "storybook", "soft", _STORY),
)


def _alone(case: str, base: str = "pico", **more: Any) -> Picture:
    return Picture(f"{case}-alone", base, (f"concepts/{case}/my_dog",), "a photo of a my_dog", **more)


_FREE = {"confine": False}
"""In one frame as it was before concepts were confined to their parts of it."""
_PLAIN_TWO = "a photo of a my_dog next to a moongate"
_TWO = "photo of a my_dog next to a moongate on the beach"
_BOTH = tuple(f"concepts/{source}" for source in _STORY)

PICTURES = (
    *map(
        _alone, ("custom", "custom-diffusion", "dreambooth", "dreambooth-full", "textual-inversion", "vico")
    ),
    _alone("two-encoders", "pico-xl"),
    _alone("edges", "pico-v"),
    Picture("style", "pico", ("concepts/style/my_style",), "a cat in the style of my_style"),
    Picture("soft", "pico", ("merges/soft",), _PLAIN_TWO, options=_FREE),
    Picture("routed", "pico", ("merges/routed",), _PLAIN_TWO, options=_FREE),
    Picture("joint", "pico", ("merges/joint",), _PLAIN_TWO, options=_FREE),
    _alone("storybook", "storybook", steps=3),
    Picture("storybook-windows", "storybook", _BOTH, _TWO, options={"side_by_side": True}, slow=True),
    Picture(
        "storybook-one-frame", "storybook", _BOTH, _TWO, options={"side_by_side": False, **_FREE}, slow=True
    ),
    Picture(
        "storybook-regions",
        "storybook",
        _BOTH,
        _TWO,
        options={"regions": ["my_dog=left", "moongate=right"], **_FREE},
        slow=True,
    ),
    Picture("storybook-separate", "storybook", _BOTH, _TWO, 10, options={"separate": True}, slow=True),
)

EXPORTS = {
    "custom": "concepts/custom/my_dog",
    "dreambooth": "concepts/dreambooth/my_dog",
    "soft": "merges/soft",
    "two-encoders": "concepts/two-encoders/my_dog",
}
"""Exported for plain diffusers: name of the folder, and of what."""

HOME = {
    "my_dog": ("concepts/custom/my_dog", "concepts/joint/my_dog"),
    "moongate": ("concepts/joint/moongate",),
    "looked": ("concepts/vico/my_dog",),
    "word": ("concepts/textual-inversion/my_dog",),
}
"""What the registry home holds: versions by name, oldest first; and `MERGED`, of `MERGED_OF`."""
MERGED, MERGED_OF = "together", ("my_dog", "moongate")
