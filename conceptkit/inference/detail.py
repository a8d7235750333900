"""A detail pass: each concept's part of a picture, drawn once more at full size and set back.

A concept is learned from photos that its thing fills. In a frame of several things each has a fraction of the
cells, and the base says less of what it learned. So each part is cut out of the base's own drawing and
enlarged, what is in it is drawn anew by the part of the prompt that names its concept alone, and it is set
back at its size: inpainting "only masked", as interfaces for Stable Diffusion call it. What is known of a
part, around its thing, is held as in RePaint (2201.09865, eq. 8).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from conceptkit.inference.layout_masks import find_parts, soft_masks
from conceptkit.inference.multidiffusion import can_have_windows
from conceptkit.inference.part_geometry import Box, box_around, cut_out, set_back, softened, within
from conceptkit.inference.prompt_scene import PromptScene, alone
from conceptkit.inference.set_in import Details
from conceptkit.rng import hash_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

STEPS = 0.5
"""Share of the drawing's steps that a part takes."""
HELD = 0.1
"""Share of a part's steps in which all of it is held, so that a thing keeps its place and bearing. With 0.16
it keeps more of the base's colours too."""
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
    """What is cut out of each of n pictures, for one thing in it.

    thing: its number in the pictures' scenes. pictures: their numbers. names: of the concepts. boxes: what is
    cut out. own, free (n, 1, H, W): where the base's thing is, and how far the picture may be changed.
    """

    thing: int
    pictures: list[int]
    names: list[str]
    boxes: list[Box]
    own: Tensor
    free: Tensor


@dataclass(eq=False)
class _Part:
    """A drawing of n enlarged parts that is under way.

    known (n, c, h, w): latents of what they were. free (n, 1, h, w): 1 where they are drawn, 0 where held.
    first: the call of the denoiser from which on they are. watch: the attention to the concepts' words.
    calls: so far.
    """

    known: Tensor
    free: Tensor
    first: int
    watch: Watch
    calls: int = 0

    def outlines(self, latents: Tensor) -> Tensor:
        """Where the concepts' things are (n, 1, h, w), from the attention to their words and the latents that
        were drawn; everywhere, where nothing was."""
        if self.calls <= self.first:
            return torch.ones_like(latents[:, :1])
        seen = self.watch.maps(self.watch.calls)
        found = [
            soft_masks(find_parts(each.double().cpu().numpy(), [""]).masks, guide.float().cpu())
            for each, guide in zip(seen, latents, strict=True)
        ]
        return torch.stack(found)


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
            undo.callback(watch_hooks(denoiser, self._attention, self._look, lambda *_: None))
            return undo.pop_all().close

    @property
    def active(self) -> bool:
        """Whether a part is being drawn in this thread."""
        return self._part is not None

    def idle(self) -> bool:
        """Whether the call of the denoiser that is under way computes nothing."""
        part = self._part
        return part is not None and part.calls <= part.first

    @property
    def _part(self) -> _Part | None:
        return getattr(self._here, "part", None)

    @torch.no_grad()
    def redraw(self, call: Call, bound: inspect.BoundArguments, layout: Layout) -> Details:
        """The pictures of a layout with their concepts' parts drawn anew, by more calls of the pipeline."""
        assert layout.latents is not None
        whole = pixels_of(self._pipe, layout.latents)
        changed = torch.zeros_like(whole[:, :1], dtype=torch.bool)
        for i in range(max(len(picture.things) for picture in layout.pictures)):
            cut = self._cut(layout.pictures, i, whole)
            if not cut.pictures:
                continue
            before = whole[cut.pictures]
            drawn, outlines = self._drawn(call, bound, layout, cut, before)
            outline = set_back(outlines, cut.boxes, torch.zeros_like(cut.own))
            share = softened(torch.maximum(outline, cut.own)) * cut.free
            whole[cut.pictures] = torch.lerp(before, set_back(drawn, cut.boxes, before), share)
            changed[cut.pictures] |= share > EMPTY
        latents = latents_of(self._pipe, whole).to(layout.latents)
        inside = F.interpolate(changed.float(), latents.shape[2:], mode="area") > 0
        return Details(whole, changed, latents, inside)

    def _cut(self, pictures: Sequence[PictureLayout], i: int, whole: Tensor) -> _Cut:
        """Thing number `i` of each picture that has a concept there: all of its box, but for other things."""
        numbers, names, boxes, owns, frees = [], [], [], [], []
        for k, picture in enumerate(pictures):
            name = picture.scene.things[i].name if i < len(picture.things) else None
            if name is None:
                continue
            masks = F.interpolate(picture.masks[None].float(), whole.shape[2:], mode="bilinear")[0]
            if not (masks[i] > 0.5).any():
                continue
            box = box_around(masks[i] > 0.5)
            others = torch.cat([masks[:i], masks[i + 1 :]]).sum(dim=0).clamp(max=1)
            free = softened((within(box, whole.shape[2:]) * (1 - others))[None, None])[0, 0]
            numbers.append(k)
            names.append(name)
            boxes.append(box)
            owns.append(masks[i])
            frees.append(free)
        stacked = [torch.stack(each)[:, None].to(whole) if each else whole[:0, :1] for each in (owns, frees)]
        return _Cut(i, numbers, names, boxes, *stacked)

    def _drawn(
        self, call: Call, bound: inspect.BoundArguments, layout: Layout, cut: _Cut, whole: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The parts of pictures (n, 3, H, W) drawn anew at their size, and where in them the concepts' things
        are, (n, 1, H, W)."""
        steps = max(1, round(STEPS * _steps(bound)))
        prompts = [alone(layout.pictures[k].scene, cut.thing, self._words) for k in cut.pictures]
        known = latents_of(self._pipe, cut_out(whole, cut.boxes))
        known = known.to(layout.predictions[0])
        free = F.interpolate(cut_out(cut.free, cut.boxes), known.shape[2:], mode="area").to(known)
        watch = Watch(self._own_words(prompts, cut.names), self._attention)
        self._here.part = part = _Part(known, free, round(HELD * steps), watch)
        more = self._arguments(bound, layout, cut.pictures) | {
            "prompt": prompts,
            "num_inference_steps": steps,
        }
        try:
            latents = called_with(call, bound, more, OF_ONE_PICTURE).images
        finally:
            self._here.part = None
        outlines = F.interpolate(part.outlines(latents).to(whole), whole.shape[2:], mode="bilinear")
        return pixels_of(self._pipe, latents), outlines

    def _arguments(
        self, bound: inspect.BoundArguments, layout: Layout, numbers: Sequence[int]
    ) -> dict[str, Any]:
        """What a call for the parts of pictures, a prompt for each of them, is given beside the prompts."""
        per_prompt = images_per_prompt(bound)
        negative = {
            name: [value if isinstance(value, str) else value[k // per_prompt] for k in numbers]
            for name, value in bound.arguments.items()
            if name in ("negative_prompt", "negative_prompt_2", "negative_prompt_3") and value is not None
        }
        assert layout.begun is not None
        begun = [layout.begun[k].float().cpu().numpy().tobytes() for k in numbers]
        return negative | {
            "num_images_per_prompt": 1,
            "generator": [torch.Generator().manual_seed(hash_of("detail", each)) for each in begun],
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
        part.calls += 1
        sample = call.sample
        assert isinstance(sample, Tensor)
        known = prediction_of(part.known, sample, call.arguments["timestep"], self._pipe.scheduler)
        if part.calls <= part.first:
            return call.result(known)
        part.watch.begin((sample.shape[-2], sample.shape[-1]))
        computed: Any = call.run()
        return call.result(torch.lerp(known, computed[0], repeated(part.free, len(sample))))

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the attention of the rows that read the prompts, which stand behind those that do not."""
        part = self._part
        if part is None:
            return
        queries = args[0] if args else kwargs["hidden_states"]
        count, parts = len(queries), len(part.known)
        rows = torch.arange(parts, device=queries.device) + parts * (count >= 2 * parts)
        part.watch.look(module, args, kwargs, rows, count)


def _steps(bound: inspect.BoundArguments) -> int:
    """How many a call asks for, or its pipeline has by itself."""
    asked = bound.arguments.get("num_inference_steps")
    return int(bound.signature.parameters["num_inference_steps"].default if asked is None else asked)


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
    if any(scene.over for scene in scenes):
        return "one thing stands before another"
    return "a style is everywhere in it" if any(scene.styles for scene in scenes) else None


def prediction_of(latents: Tensor, sample: Tensor, time: Tensor | float, scheduler: SchedulerMixin) -> Tensor:
    """What a denoiser that knows the pictures `latents` (P, c, h, w) predicts of noisy ones (B, c, h, w)."""
    schedule = schedule_of(scheduler)
    t = schedule.step_of(torch.as_tensor(time).flatten()[:1].cpu())
    clean, noisy = repeated(latents, len(sample)).to(sample.device).float(), sample.float()
    return schedule.target(clean, schedule.noise_in(noisy, clean, t), t).to(sample)
