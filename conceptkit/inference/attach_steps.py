"""What `attach` does one after the other: whose words are where, layouts, windows, the delta."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from conceptkit.base import pipeline
from conceptkit.base.architectures import architecture_of, denoiser_of, text_site
from conceptkit.base.fused_projections import check_unfused
from conceptkit.concepts import prompt_rewriting
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.concepts.gates import rank_gates
from conceptkit.errors import BadRegion
from conceptkit.inference.attach_request import AttachRequest
from conceptkit.inference.confine_by_attention import ByAttention
from conceptkit.inference.confine_by_prediction import ByPrediction
from conceptkit.inference.confined_drawing import ConfinedDrawing
from conceptkit.inference.confinement import Confinement, ConfinementKind
from conceptkit.inference.detail import DetailPass
from conceptkit.inference.installed_delta import InstalledDelta
from conceptkit.inference.layer_check import check_layers
from conceptkit.inference.layout_attention import kind_of
from conceptkit.inference.multidiffusion import Windows, can_have_windows
from conceptkit.inference.per_concept_encoding import PerConceptEncoding
from conceptkit.inference.split_prompt import things
from conceptkit.inference.token_owners import TokenOwners
from conceptkit.tuners.inject import unmerge

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def reading_of(pipe: DiffusionPipeline, concept: Concept, request: AttachRequest) -> TokenOwners | None:
    """Whoever needs to know whose words are where; the concept's tokens are on the pipeline."""
    if concept.reference is not None:
        return TokenOwners(pipe, {name: list(concept.tokens) for name in concept.words})
    in_attention = bool(request.masks) and looks_at_text(pipe)
    strict = concept.routing is not None or in_attention or request.auto_regions
    if not strict and not rank_gates(concept):
        return None
    spelt = {name: [text, *prompt_rewriting.TOKEN.findall(text)] for name, text in concept.words.items()}
    return TokenOwners(pipe, spelt, strict)


def looks_at_text(pipe: DiffusionPipeline) -> bool:
    """Whether pictures look at text in layers of their own, which regions and layouts may look at."""
    kind = architecture_of(pipe)
    return kind.denoiser == "unet" and kind.has_cross_attention


def check_regions(pipe: DiffusionPipeline, request: AttachRequest) -> None:
    """Raises BadRegion where regions were ordered that take a UNet's cross-attention, and there is none."""
    if looks_at_text(pipe):
        return
    kind = type(denoiser_of(pipe)).__name__
    if request.auto_regions:
        raise BadRegion(
            f"auto_regions are of a UNet's cross-attention, and {kind} has none; leave them out: one frame "
            "of several concepts is laid out there anyway"
        )
    if request.masks and request.confine is False:
        raise BadRegion(f"On a {kind} regions are parts of a layout; leave them out, or confine=False")


def confined_drawing(
    here: pipeline.Base, concept: Concept, request: AttachRequest, reading: TokenOwners | None
) -> ConfinedDrawing | None:
    """A layout for several things, where that was ordered, or one frame is drawn and can have one."""
    wanted = request.confine
    if wanted is None:
        placed = bool(request.masks) or request.auto_regions  # regions alone keep as much, in less time
        several = len(concept.words) > 1 and not placed and not windows_wanted(here, concept, request)
        wanted = several or (bool(request.masks) and not looks_at_text(here.pipe))
    if not wanted or not things(concept.words):
        if request.detail:
            raise BadRegion(
                "detail draws the parts of a layout at full size, and there is none here; leave it out, or "
                "confine the concepts"
            )
        return None
    isolated = request.isolate_concepts is not False
    nouns = here.family.class_nouns
    kind = _confinement_kind(here, concept, request, reading)
    confinement = Confinement(here.pipe, concept, reading, kind, isolated)
    return ConfinedDrawing(
        here.pipe,
        confinement,
        concept.words,
        request.masks,
        nouns,
        bool(request.confine),
        detail_pass(here, concept, request),
    )


def detail_pass(here: pipeline.Base, concept: Concept, request: AttachRequest) -> DetailPass | None:
    """Where that was ordered, or nothing was and it suits the base."""
    wanted = here.family.detail if request.detail is None else request.detail
    able = looks_at_text(here.pipe) and can_have_windows(here.pipe)
    if request.detail and not able:
        raise BadRegion(
            f"detail cuts parts out of what a UNet draws from noise alone, and a {type(here.pipe).__name__} "
            "draws in another way; leave detail out"
        )
    if request.detail and concept.reference is not None:
        raise BadRegion(
            f"{concept.name} looks at its reference photo, which is drawn whole; leave detail out"
        )
    if request.detail and request.masks:
        raise BadRegion("detail goes by where the base draws things, not by regions; leave one of them out")
    hindered = request.masks or concept.reference is not None
    return DetailPass(here.pipe, concept.words) if wanted and able and not hindered else None


def _confinement_kind(
    here: pipeline.Base, concept: Concept, request: AttachRequest, reading: TokenOwners | None
) -> ConfinementKind:
    """By attention where it can be looked at, by predictions everywhere else."""
    given = {name: torch.from_numpy(cells).float() for name, cells in request.masks.items()}
    attention = kind_of(here.denoiser) if looks_at_text(here.pipe) else None
    if attention is not None:
        return ByAttention(here.pipe, attention, concept.words, reading, given)
    return ByPrediction(here.pipe, concept.words, reading, given, here.family.class_nouns)


def windows_wanted(here: pipeline.Base, concept: Concept, request: AttachRequest) -> bool:
    """Whether each thing gets a window: that was ordered, or nothing was and it suits the base."""
    if len(things(concept.words)) < 2:
        return False
    if request.side_by_side is not None:
        return request.side_by_side
    other = bool(request.masks) or request.auto_regions or bool(request.confine)
    return here.family.side_by_side and not other and can_have_windows(here.pipe)


def windows_of(here: pipeline.Base, concept: Concept, request: AttachRequest) -> Windows | None:
    """A window for each of several concepts, where that was ordered, or nothing was and it suits the base."""
    if request.side_by_side and not can_have_windows(here.pipe):
        raise BadRegion(
            f"A {type(here.pipe).__name__} draws on a picture that it is given, or after one, which has no "
            "windows; leave side_by_side out, or use a text-to-image pipeline"
        )
    return Windows(here.pipe, concept.words) if windows_wanted(here, concept, request) else None


def encoding_apart(
    here: pipeline.Base, concept: Concept, request: AttachRequest
) -> PerConceptEncoding | None:
    """Each concept's words read without the others, where that was ordered, or suits the base."""
    wanted = here.family.isolate_concepts if request.isolate_concepts is None else request.isolate_concepts
    if wanted and not (here.architecture.denoiser == "unet" and here.architecture.lora_encoders):
        raise BadRegion(
            f"isolate_concepts puts features together as CLIP makes them, and a {type(here.pipe).__name__} "
            "has others; leave it out"
        )
    return PerConceptEncoding(here.pipe, concept.words) if wanted and len(things(concept.words)) > 1 else None


def install_delta(
    undo: ExitStack,
    pipe: DiffusionPipeline,
    installed: InstalledDelta,
    concept: Concept,
    reading: TokenOwners | None,
    idle: Callable[[], bool],
) -> None:
    """The delta, as adapters on the UNet and the text encoders; a routed one's keys and values as routes.

    idle: whether a call of the UNet computes nothing.
    """
    delta: Delta = concept.delta
    denoiser = denoiser_of(pipe)
    names = tuple(concept.words) or (concept.name,)
    check_unfused(denoiser, list(delta), f"which {concept.name} changes")
    if reading and concept.routing:
        from conceptkit.inference.routed_attention import install_routes

        maps = text_site(pipe)
        routed = delta.only(maps)
        undo.callback(install_routes(denoiser, routed, concept.routing, reading))
        undo.callback(check_layers(denoiser, {name: maps[name] for name in routed}, names, idle))
        delta = delta.without(maps)
    if not delta:
        installed.remove()
        return
    for owner, layers in installed.put(delta):
        undo.callback(unmerge, layers.values())
        undo.callback(check_layers(owner, layers, names, idle))
    undo.callback(installed.silence)
