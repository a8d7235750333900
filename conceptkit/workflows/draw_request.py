"""What a drawing is asked for, checked before torch or a base is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conceptkit.base.schedulers import check_scheduler
from conceptkit.errors import BadPrompt, BadRecipe
from conceptkit.inference import regions
from conceptkit.merging import request
from conceptkit.registry.store import Entry, Registry

STEPS = 25
LEAST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1
LEAST = {
    "count": 1,
    "num_inference_steps": 1,
    "guidance_scale": 0,
    "pag_scale": 0,
    "true_cfg_scale": 0,
    "batch_size": 1,
    "width": 1,
    "height": 1,
}


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """Concepts, a prompt, and how to draw it.

    concepts: names in the registry, each with a strength if wanted: "my_dog:0.8".
    prompt: what to draw; a concept's name is a word in it.
    count, seed: so many pictures, with the seeds `seed`, `seed` + 1, ...
    merge_method, padding_delta: see `merging.request`.
    regions: "my_dog=left" keeps a concept in a part of the picture; see `inference.regions.parse_regions`.
    auto_regions: the concepts split the picture by themselves.
    side_by_side: a window for each concept in a wide picture; None: where that suits the base.
    isolate_concepts: each concept's words are encoded without the others; None: where that suits the base.
    confine: in one frame each concept acts in its own part alone; None: where there are several.
    detail: there each is drawn once more at full size and set in; None: where that suits the base.
    num_inference_steps, guidance_scale, pag_scale, true_cfg_scale: as in diffusers; None: what suits.
    negative_prompt: what to draw away from. width, height: in pixels; None: the base's own.
    scheduler: a row of `base.schedulers.SCHEDULERS`; None: the base's own.
    batch_size: how many pictures are drawn at once; more are faster where there is memory for them.
    save: a name under which the merge is kept.

    Raises BadPrompt, BadRecipe, BadRegion or ConceptError when something in it makes no sense.
    """

    concepts: tuple[str, ...]
    prompt: str
    count: int = 1
    seed: int = 0
    merge_method: str = request.MERGE_METHOD
    padding_delta: str = request.PADDING_DELTA
    regions: tuple[str, ...] = ()
    auto_regions: bool = False
    side_by_side: bool | None = None
    isolate_concepts: bool | None = None
    confine: bool | None = None
    detail: bool | None = None
    num_inference_steps: int = STEPS
    guidance_scale: float | None = None
    pag_scale: float | None = None
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    batch_size: int = 1
    save: str | None = None
    weights: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise BadPrompt(
                "An empty prompt draws nothing in particular: say what to draw, with a concept's name in it."
            )
        for text in (self.prompt, self.negative_prompt or ""):
            _check_text(text)
        if not (self.seed >= LEAST_SEED and self.seed + self.count - 1 <= LARGEST_SEED):
            raise BadRecipe(f"The seed {self.seed} is no number of 64 bits; give a smaller one")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadRecipe(f"{name} = {value} draws nothing; give {least} or more")
        if self.scheduler is not None:
            check_scheduler(self.scheduler)
        asked = request.ComposeRequest(self.concepts, None, self.merge_method, self.padding_delta, self.save)
        object.__setattr__(self, "weights", {order.name: order.weight for order in asked.orders})
        request.check_one_way_apart(self.regions, self.auto_regions, self.side_by_side, self.confine)
        regions.parse_regions(self.regions)

    def entries(self, registry: Registry) -> list[Entry]:
        """The concepts in the registry, in order. Raises UnknownConcept, or NameTaken for `save`."""
        found = [registry.get(name) for name in self.weights]
        if self.save:
            registry.check_free(self.save)
        return found

    @property
    def seeds(self) -> range:
        """The seed of each picture."""
        return range(self.seed, self.seed + self.count)

    @property
    def drawn_as(self) -> dict[str, Any]:
        """How it is drawn, as far as that was asked for: for the metadata of pictures."""
        names = ("negative_prompt", "width", "height", "scheduler", "true_cfg_scale")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def placement(self) -> dict[str, Any]:
        """The options of `attach` that say where in a picture the concepts are."""
        if self.regions:
            return {"regions": list(self.regions)}
        return {"auto_regions": True} if self.auto_regions else {}


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt(f"The prompt {text[:60]!a} is no text; type it in UTF-8") from error


def slug(prompt: str) -> str:
    """The beginning of a prompt as a file name: lower case, at most 48 characters."""
    return re.sub(r"\W+", "_", prompt.lower()).strip("_")[:48].rstrip("_") or "picture"
