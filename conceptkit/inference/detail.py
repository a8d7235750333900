"""A detail pass: each concept's part of a picture, drawn once more at full size and set back.

A concept is learned from photos that its thing fills. In a frame of several things each has a fraction of the
cells, and the base says less of what it learned. So the base's thing is taken out of its own drawing, the
part is enlarged, the concept is drawn there by the part of the prompt that names it alone, and its thing is
cut out and set back at its size: inpainting "only masked", as interfaces for Stable Diffusion call it. Where
another thing is, the part is held as in RePaint (2201.09865, eq. 8).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.base.autoencoder import latents_of, pixels_of
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.base.text_features import positions, spell, token_ids
from conceptkit.concepts import prompt_rewriting
from conceptkit.errors import BadBase
from conceptkit.inference.call_hook import Call, called_with, images_per_prompt
from conceptkit.inference.denoiser_call import DenoiserCall, Result, take_calls
from conceptkit.inference.drawing_stage import repeated
from conceptkit.inference.layout import Layout, PictureLayout
from conceptkit.inference.layout_attention import CrossAttention, Watch, watch_hooks
from conceptkit.inference.layout_masks import Cells
from conceptkit.inference.layout_noise import without_lowest
from conceptkit.inference.multidiffusion import can_have_windows
from conceptkit.inference.outlines import filled, grown, outlines
from conceptkit.inference.part_geometry import Box, box_around, cut_out, set_back, softened
from conceptkit.inference.prompt_scene import PromptScene, alone
from conceptkit.inference.set_in import Details
from conceptkit.rng import hash_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

STEPS, LEAST_STEPS = 0.32, 4
"""Share of the drawing's steps that a part takes, and how many at least: in fewer little is drawn, and PNDM
(2202.09778) does not begin."""
SURELY, PERHAPS, CUT_OUT = 1.0, 0.7, 0.5
"""Least attention of an outline, see `outlines`: of the base's things for how large each is and where it
keeps others out, and for what is taken away, where too little is worse than too much; of a concept in its
part, where that holds even more."""
RIM_OF_A_PART = 10.0
"""How much the rim of a part weighs where it shows scenery, see `outlines`: a part is cut to its thing, which
often reaches its rim."""
AT_ONCE = 4
"""Parts that are drawn in one call, or as many as there are pictures: more of them take more memory than the
pictures themselves did."""
LOWEST = 3
"""Frequencies along a side that a part's noise is without, for what it draws is to look as learned."""
EMPTY = 1 / 512
"""Share of a part in a pixel below which the pixel stays the base's own."""
OF_ONE_PICTURE = (
    *("latents", "timesteps", "sigmas", "prompt_2", "prompt_3"),
    *("callback_on_step_end", "callback", "callback_steps"),
)
"""Arguments that are for the drawing of the whole picture alone."""
UNSHARED = ("negative_prompt_embeds", "ip_adapter_image", "ip_adapter_image_embeds", "denoising_end")
"""Arguments of a picture that say nothing of its parts."""


@dataclass(frozen=True, eq=False)
class _Cut:
    """What is cut out of a picture for one thing in it.

    picture, thing: their numbers. name: of the concept. box: what is cut out. others (1, H, W): 1 where the
    base has things that are beside it, neither before nor behind.
    """

    picture: int
    thing: int
    name: str
    box: Box
    others: Tensor


@dataclass(eq=False)
class _Part:
    """A drawing of n enlarged parts that is under way.

    known (n, c, h, w): latents of the parts without concepts and things beside them. free (n, 1, h, w): 1
    where they are drawn, 0 where held. watch: the attention to the concepts' words.
    """

    known: Tensor
    free: Tensor
    watch: Watch


class DetailPass:
    """On one pipeline: draws the parts of a layout anew.

    words: of the concepts.
    """

    def __init__(self, pipe: DiffusionPipeline, words: Mapping[str, str]) -> None:
        self._pipe, self._words = pipe, words
        self._attention = CrossAttention()
        self._here = threading.local()  # one drawing in each thread

    def install(self, denoiser: nn.Module) -> Callable[[], None]:
        """Listen to the denoiser; gives the way back."""
        with ExitStack() as undo:
            undo.callback(take_calls(denoiser, self._take))
            undo.callback(
                watch_hooks(denoiser, self._attention, self._look, lambda *_: None, self._look_between)
            )
            return undo.pop_all().close

    @property
    def active(self) -> bool:
        """Whether a part is being drawn in this thread."""
        return self._part is not None

    @property
    def _part(self) -> _Part | None:
        return getattr(self._here, "part", None)

    @torch.no_grad()
    def redraw(self, call: Call, bound: inspect.BoundArguments, layout: Layout) -> Details:
        """The pictures of a layout with their concepts' parts drawn anew, by more calls of the pipeline."""
        assert layout.latents is not None
        whole = pixels_of(self._pipe, layout.latents)
        places = [
            _places(picture, pixels) for picture, pixels in zip(layout.pictures, whole.cpu(), strict=True)
        ]
        wide = [perhaps for _, perhaps in places]
        named = [
            [i for i, thing in enumerate(picture.scene.things) if thing.name is not None]
            for picture in layout.pictures
        ]
        empty = _without(whole, _union(wide, named))
        cuts = [
            cut
            for k, (picture, (surely, _)) in enumerate(zip(layout.pictures, places, strict=True))
            for cut in _cuts(k, picture.scene, surely)
        ]
        parts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        at_once = max(AT_ONCE, len(whole))
        for start in range(0, len(cuts), at_once):
            parts |= self._drawn(call, bound, layout, cuts[start : start + at_once], empty)
        redrawn = [[i for i in numbers if (k, i) in parts] for k, numbers in enumerate(named)]
        removed = softened(_grown(_union(wide, redrawn))).to(whole)
        whole, changed = torch.lerp(whole, empty, removed), removed > EMPTY
        for k, picture in enumerate(layout.pictures):
            for i in picture.scene.back_to_front():
                if (k, i) in parts:
                    part, share = parts[k, i]
                    whole[k] = torch.lerp(whole[k], part, share)
                    changed[k] |= share > EMPTY
        lost = tuple(tuple(sorted({*own} - {*done})) for own, done in zip(named, redrawn, strict=True))
        inside = F.interpolate(changed.float(), layout.latents.shape[2:], mode="area") > 0
        return Details(whole, changed, inside, layout.latents.shape, self._encoded, lost)

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Latents of pictures, after the pipeline's last call: what is offloaded goes back."""
        latents = latents_of(self._pipe, pixels)
        self._pipe.maybe_free_model_hooks()
        return latents

    def _drawn(
        self, call: Call, bound: inspect.BoundArguments, layout: Layout, cuts: Sequence[_Cut], empty: Tensor
    ) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """By numbers of pictures and things: the concepts drawn anew in pictures (n, 3, H, W) without them,
        (3, H, W), and where there they are, (1, H, W); none of which nothing is seen."""
        boxes, others = [cut.box for cut in cuts], torch.stack([cut.others for cut in cuts])
        around = empty[[cut.picture for cut in cuts]]
        prompts = [alone(layout.pictures[cut.picture].scene, cut.thing, self._words) for cut in cuts]
        known = latents_of(self._pipe, cut_out(_without(around, others), boxes))
        known = known.to(layout.predictions[0])
        free = F.interpolate(1 - cut_out(others, boxes), known.shape[2:], mode="area").to(known)
        watch = Watch(self._own_words(prompts, [cut.name for cut in cuts]), self._attention)
        self._here.part = _Part(known, free, watch)
        more = self._arguments(bound, layout, cuts) | {
            "prompt": prompts,
            "num_inference_steps": _of_a_part(_steps(bound)),
        }
        try:
            latents = called_with(call, bound, more, OF_ONE_PICTURE).images
        finally:
            self._here.part = None
        drawn = pixels_of(self._pipe, latents)
        seen = watch.outlining(watch.calls)
        found = [
            outlines(one, maps, torch.ones(1, 1, 1), [CUT_OUT], RIM_OF_A_PART)[0]
            for one, maps in zip(drawn.cpu(), seen, strict=True)
        ]
        outline = torch.from_numpy(np.stack(found)).float()
        share = softened(set_back(outline, boxes, torch.zeros_like(others)) * (1 - others))
        placed = set_back(drawn, boxes, around)
        return {
            (cut.picture, cut.thing): (part, where.to(part))
            for cut, part, where in zip(cuts, placed, share, strict=True)
            if bool((where > EMPTY).any())
        }

    def _arguments(
        self, bound: inspect.BoundArguments, layout: Layout, cuts: Sequence[_Cut]
    ) -> dict[str, Any]:
        """What a call for parts, a prompt for each of them, is given beside the prompts."""
        per_prompt = images_per_prompt(bound)
        negative = {
            name: [value if isinstance(value, str) else value[cut.picture // per_prompt] for cut in cuts]
            for name, value in bound.arguments.items()
            if name in ("negative_prompt", "negative_prompt_2", "negative_prompt_3") and value is not None
        }
        assert layout.begun is not None
        begun = [layout.begun[cut.picture].float().cpu().numpy().tobytes() for cut in cuts]
        seeds = [hash_of("detail", cut.thing, each) for cut, each in zip(cuts, begun, strict=True)]
        dice = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(layout.begun.shape[1:], generator=each) for each in dice])
        return negative | {
            "num_images_per_prompt": 1,
            "generator": dice,
            "latents": without_lowest(noise, LOWEST).to(layout.begun),
            "output_type": "latent",
            "return_dict": True,
        }

    def _own_words(self, prompts: Sequence[str], names: Sequence[str]) -> Tensor:
        """(n, T, 1): 1 at the words of each prompt's concept."""
        ids = token_ids(self._pipe, [prompt_rewriting.replace(text, self._words) for text in prompts])
        found = []
        for row, name in zip(ids, names, strict=True):
            words = self._words[name]  # in a plural its noun is another word, its token is not
            own = [positions(row[None], spell(self._pipe, text)) for text in (words, words.split(" ")[0])]
            found.append(next((one for one in own if one.any()), own[0]))
        return torch.cat(found).unsqueeze(2).float()

    def _take(self, call: DenoiserCall) -> Result:
        """A call of the denoiser: what is held of a part is predicted as one who knows it would."""
        part = self._part
        if part is None:
            return call.run()
        sample = call.sample
        assert isinstance(sample, Tensor)
        known = prediction_of(part.known, sample, call.arguments["timestep"], self._pipe.scheduler)
        part.watch.begin((sample.shape[-2], sample.shape[-1]))
        computed: Any = call.run()
        return call.result(torch.lerp(known, computed[0], repeated(part.free, len(sample))))

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the attention to the concepts' words."""
        part = self._part
        if part is not None:
            part.watch.look(module, args, kwargs, _rows_of(part, args, kwargs))

    def _look_between(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the attention of cells to each other."""
        part = self._part
        if part is not None:
            part.watch.look_between(module, args, kwargs, _rows_of(part, args, kwargs))


def _rows_of(part: _Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The rows of a call of attention that read the prompts, behind those that do not."""
    queries = args[0] if args else kwargs["hidden_states"]
    count, parts = len(queries), len(part.known)
    return torch.arange(parts, device=queries.device) + parts * (count >= 2 * parts)


def _places(picture: PictureLayout, pixels: Tensor) -> tuple[Cells, Cells]:
    """Where each thing of a layout surely is in its picture (3, H, W), and perhaps, (N, H, W): along its
    outline where the base has drawn it, all of its part elsewhere."""
    masks = F.interpolate(picture.masks[None].float(), pixels.shape[1:], mode="bilinear")[0] > 0.5
    surely, perhaps = masks.numpy(), masks.numpy().copy()
    if picture.seen is None:
        return surely, perhaps
    found = outlines(pixels, picture.seen, picture.masks, (SURELY, PERHAPS))
    for places, own in zip((surely, perhaps), found, strict=True):
        for i, outline in enumerate(own):
            if picture.things[i].found and outline.any():
                places[i] = outline
    return surely, perhaps


def _cuts(number: int, scene: PromptScene, places: Cells) -> list[_Cut]:
    """What is cut out of picture `number` for each concept in it, by the places (N, H, W) of all things."""
    found = []
    for i, thing in enumerate(scene.things):
        if thing.name is not None and places[i].any():
            others = torch.from_numpy(places[_beside(scene, i)].any(axis=0))[None].float()
            found.append(_Cut(number, i, thing.name, box_around(torch.from_numpy(places[i])), others))
    return found


def _beside(scene: PromptScene, i: int) -> list[int]:
    """The things that thing `i` keeps out of: not those behind it, nor concepts before it, which hide it."""
    concepts_before = {j for j in scene.before(i) if scene.things[j].name is not None}
    return [j for j in range(len(scene.things)) if j not in {i} | scene.behind(i) | concepts_before]


def _union(places: Sequence[Cells], things: Sequence[Sequence[int]]) -> Tensor:
    """1 where one of these things is, (pictures, 1, H, W), by the places (N, H, W) of all."""
    masks = [each[list(numbers)].any(axis=0) for each, numbers in zip(places, things, strict=True)]
    return torch.from_numpy(np.stack(masks))[:, None].float()


def _without(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) with what is in masks (n, 1, H, W) taken away."""
    return torch.stack(
        [filled(one, grown(mask[0].numpy() > 0)) for one, mask in zip(pictures, masks, strict=True)]
    )


def _grown(masks: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(grown(mask.numpy() > 0)).float() for mask in masks[:, 0]])[:, None]


def _steps(bound: inspect.BoundArguments) -> int:
    """How many a call asks for, or its pipeline has by itself."""
    for own in ("timesteps", "sigmas"):
        if bound.arguments.get(own) is not None:
            return len(bound.arguments[own])
    asked = bound.arguments.get("num_inference_steps")
    return int(bound.signature.parameters["num_inference_steps"].default if asked is None else asked)


def _of_a_part(steps: int) -> int:
    """How many steps a part takes of a drawing that has so many."""
    return max(min(LEAST_STEPS, steps), round(STEPS * steps))


def hindrance(pipe: DiffusionPipeline, scenes: Sequence[PromptScene], given: Mapping[str, Any]) -> str | None:
    """Why the concepts of a call with these arguments are drawn in the frame itself; None where each can be
    drawn by itself."""
    if not can_have_windows(pipe):
        return "the pipeline draws on a picture that it is given"
    for part in ("safety_checker", "watermark"):
        if getattr(pipe, part, None) is not None:
            return f"the pipeline's {part} would not see what is set in"
    for name in UNSHARED:
        if given.get(name) is not None:
            return f"{name} is given"
    try:
        schedule_of(pipe.scheduler)
    except BadBase:
        return f"nothing can be held by a {type(pipe.scheduler).__name__}"
    return "a style is everywhere in it" if any(scene.styles for scene in scenes) else None


def prediction_of(latents: Tensor, sample: Tensor, time: Tensor | float, scheduler: SchedulerMixin) -> Tensor:
    """What a denoiser that knows the pictures `latents` (P, c, h, w) predicts of noisy ones (B, c, h, w)."""
    schedule = schedule_of(scheduler)
    t = schedule.step_of(torch.as_tensor(time).flatten()[:1].cpu())
    clean, noisy = repeated(latents, len(sample)).to(sample.device).float(), sample.float()
    return schedule.target(clean, schedule.noise_in(noisy, clean, t), t).to(sample)
