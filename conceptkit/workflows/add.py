"""Learning: photos become a concept in the registry."""

from __future__ import annotations

import builtins
import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from conceptkit.base import devices
from conceptkit.base import pipeline as bases
from conceptkit.compression.sizes import RECIPE, SizeRequest, compress
from conceptkit.data import photos as photo_files
from conceptkit.data import resize
from conceptkit.errors import BadRecipe
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import draw
from conceptkit.learn import memory, mixed_precision, prior_preservation, target_modules
from conceptkit.learn.checkpoints import CheckpointManager, path_for
from conceptkit.learn.claims import claimed_names
from conceptkit.learn.config import old_name_notices
from conceptkit.learn.distributed import current
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import Outcome, train
from conceptkit.pictures import charts
from conceptkit.registry.opening import opened
from conceptkit.renamed import renamed_arguments
from conceptkit.workflows.add_settings import AddOptions, AddSettings, Order, Photos, Wanted
from conceptkit.workflows.class_noun import noun_of

if TYPE_CHECKING:
    from PIL import Image

    from conceptkit.concepts.concept import Concept
    from conceptkit.registry.entries import Entry
    from conceptkit.registry.store import Registry


PREVIEWS = 4
UNFINISHED = "What was learned so far is kept; resume=True goes on with it"
STORED = "What was learned is stored; only its preview is missing"


@dataclass(frozen=True, eq=False)
class Learned:
    """What `add` brings back: the registry's entry, the concept, and what a user should know.

    preview: pictures of it, or None where the base could draw none.
    curve: the validation loss as a picture, where there was one.
    """

    entry: Entry
    concept: Concept
    preview: Image.Image | None
    seconds: float
    bytes: int
    notices: list[str]
    curve: Image.Image | None = None

    def _repr_png_(self) -> builtins.bytes | None:
        """What a notebook shows: the preview."""
        if self.preview is None:
            return None
        png = io.BytesIO()
        self.preview.save(png, format="PNG")
        return png.getvalue()


@renamed_arguments(noun="class_noun")
def add(
    name: str,
    photos: Photos,
    *,
    class_noun: str | None = None,
    kind: str = "subject",
    masks: Path | str | None = None,
    class_images: Photos | None = None,
    **options: Unpack[AddOptions],
) -> Learned:
    """Learn a subject from photos and store it under `name`.

    photos: a folder, files, or several of them.
    class_noun: what kind of thing it is; None: the name or the photos' folder suggests one.
    kind: "subject" or "style"; a style has no class.
    masks: a folder of pictures, white where the subject is.
    class_images: pictures of the class to hold on to; methods that hold on to some draw them otherwise.
    options: fields of `AddSettings`.

    Raises BadName, NameTaken, BadPhotos, BadBase, BadDevice or BadRecipe before anything is learned; no
    concept is stored then. A KeyboardInterrupt has the note UNFINISHED where `resume` can go on.
    """
    settings = AddSettings(**options)
    wanted = {name: Wanted(photos, class_noun, kind, masks, class_images)}
    (learned,) = _add(wanted, None, settings)
    return learned


@renamed_arguments(nouns="class_nouns")
def add_together(
    photos: Mapping[str, Photos],
    *,
    class_nouns: Mapping[str, str] | None = None,
    name: str | None = None,
    masks: Mapping[str, Path | str] | None = None,
    class_images: Mapping[str, Photos] | None = None,
    **options: Unpack[AddOptions],
) -> list[Learned]:
    """Learn several subjects in one run (joint training, Custom Diffusion, 2212.04488, section 3.3).

    photos, class_nouns, masks, class_images: by the subjects' names.
    name: of all of them as one concept; None: their names joined by hyphens.
    options: fields of `AddSettings`.

    Each is stored as a concept of its own, and all of them as one, which comes last. Where two are of one
    class, pictures of it that were given for either are held on to. Raises what `add` raises.
    """
    settings = AddSettings(**options)
    if len(photos) < 2:
        raise BadRecipe(f"Learning together takes two or more things, not {len(photos)}; add one with add")
    nouns, masks, images = dict(class_nouns or {}), dict(masks or {}), dict(class_images or {})
    for what, by_name in (("A class was", nouns), ("Masks were", masks), ("Class images were", images)):
        if unknown := sorted(set(by_name) - set(photos)):
            raise BadRecipe(f"{what} given for {unknown[0]}, which is not learned here; check the name")
    wanted = {
        one: Wanted(where, nouns.get(one), "subject", masks.get(one), images.get(one))
        for one, where in photos.items()
    }
    return _add(wanted, name or "-".join(photos)[:64], settings)


def _add(wanted: Mapping[str, Wanted], joint: str | None, settings: AddSettings) -> list[Learned]:
    """What `add` and `add_together` have in common: each subject as it was learned, the joint one last."""
    begun = time.monotonic()
    renamed = tuple(old_name_notices(settings.changes, settings.config))
    recipe, seed, resume = settings.recipe(), settings.seed, settings.resume
    if settings.size == RECIPE:
        raise BadRecipe("Only a merge is stored as its recipe; choose tiny, small or full here")
    wish = SizeRequest(settings.size)
    order = Order(wanted, recipe, joint, seed, resume, settings.new_version, renamed, wish)
    with ExitStack() as stack:
        registry = stack.enter_context(opened(settings.registry))
        names = [*order.wanted, *([order.name] if order.name and order.name not in order.wanted else [])]
        for name in names:
            registry.check_free(name, new_version=order.new_version)
        if current().first:
            stack.enter_context(claimed_names(registry.home, names))
        sets = {name: photo_files.read(one.photos, one.masks) for name, one in order.wanted.items()}
        base = loaded(settings)
        # What family a base is of is known for sure once it is there, and steps once photos are counted.
        photos = sum(map(len, sets.values()))
        order = replace(order, config=replace(settings, base=base).recipe(photos))
        session = Session(base, registry, settings.progress)
        notices = [*order.notices, *mixed_precision.notices(base.device, order.config)]
        notices += memory.notices(base, order.config)
        notices += target_modules.notices(base, order.config)
        notices += filter(None, [bases.adapters_notice(base, " and ".join(sets))])
        request = _request(order, sets, base, registry, notices)
        images = prior_preservation.of_photo_sets(base, request.subjects, order.config.instance_prompt)
        checkpoints = _checkpoints(request, session, images)
        try:
            outcome = train(request, session, checkpoints, images)
            made = [*outcome.parts, outcome.whole] if request.name else [outcome.whole]
            made = [_smaller(concept, base, order.size, notices) for concept in made]
            entries = _store(request, session, made)
        except KeyboardInterrupt as stop:
            if checkpoints.unfinished:
                stop.add_note(UNFINISHED)
            raise
        notices += [*_described(base, outcome), *outcome.notices, *checkpoints.notices]
        if session.distributed.first:
            checkpoints.drop()
        sheets = _previews(session, entries, made, request.seed, notices)
        seconds, curve = time.monotonic() - begun, _curve(outcome)
        return [
            Learned(entry, concept, sheet, seconds, entry.bytes, notices, curve)
            for entry, concept, sheet in zip(entries, made, sheets, strict=True)
        ]


def loaded(settings: AddSettings) -> bases.Base:
    """The base, loaded where it comes by its name."""
    if isinstance(settings.base, str):
        device = current().device or devices.choose(settings.device)
        return bases.load(settings.base, device=device, **settings.loading.given)
    settings.loading.check_unused(settings.base.name)
    return bases.refreshed(settings.base)


def _request(
    order: Order,
    sets: Mapping[str, photo_files.PhotoSet],
    base: bases.Base,
    registry: Registry,
    notices: list[str],
) -> TrainRequest:
    """The order with its photos read and its class nouns found."""
    subjects = []
    for name, one in order.wanted.items():
        noun = one.class_noun
        if one.kind != "style":
            noun = noun_of(name, noun, sets[name].folder, base, notices)
        notices += _faint(base, sets[name])
        images = None if one.class_images is None else photo_files.read(one.class_images)
        token = _free_token(registry, name)
        subjects.append(Subject(name, noun, sets[name], one.kind, images, own_token=token))
    return TrainRequest(
        tuple(subjects), order.config, order.name, order.seed, order.resume, order.new_version
    )


def _free_token(registry: Registry, name: str) -> str | None:
    """A token for `name` that no concept of another name has; None for that of the name itself.

    A concept keeps its token when it is renamed, so that of a name may stand for something else by now.
    """
    others = [
        entry for entry in registry.list() if entry.name != name and entry.summary.get("kind") != "merge"
    ]
    taken = {token for e in others for token in e.summary.get("tokens", ())}
    if f"<{name}>" not in taken:
        return None
    return next(token for k in count(2) if (token := f"<{name}-{k}>") not in taken)


def _checkpoints(
    request: TrainRequest, session: Session, images: Mapping[str, prior_preservation.ClassImages]
) -> CheckpointManager:
    """Where the run keeps its checkpoints; with `resume` the one to go on from is read."""
    assert session.registry is not None
    about = _about(session.base, request)
    if images:
        about["class_images"] = {
            noun: hashlib.sha256(one.to_bytes()).hexdigest() for noun, one in images.items()
        }
    checkpoints = CheckpointManager(path_for(session.registry.home, request.names[-1]), about)
    if request.resume:
        checkpoints.resume()
    return checkpoints


def _smaller(concept: Concept, base: bases.Base, wish: SizeRequest, notices: list[str]) -> Concept:
    """The concept as it is to be stored, with a sentence on what that costs."""
    if wish.share is None:
        return concept
    made = compress(concept, base, wish)
    notices.append(
        f"{concept.name} is stored {wish.size}: it keeps {made.kept:.1%} of its effect on unseen noise; "
        "learn it with --size full to keep every number."
    )
    notices += [made.notice] if made.notice else []
    return made.concept


def _store(request: TrainRequest, session: Session, made: Sequence[Concept]) -> list[Entry]:
    """The concepts' entries, all of them or none; of several processes the first one stores them."""
    from conceptkit.registry.entries import New

    registry = session.registry
    assert registry is not None
    with session.distributed.in_turn():
        if not session.distributed.first:
            return [registry.get(concept.name) for concept in made]
        news = [New(c.name, c.to_bytes(), c.summary() | _captions(c, request.subjects)) for c in made]
        return registry.add_many(news, new_version=request.new_version)


def _captions(concept: Concept, subjects: Sequence[Subject]) -> dict[str, list[str]]:
    """The captions of its photos, for searching; they are in no concept's bytes."""
    texts = [text for s in subjects if s.name in concept.words for text in s.photos.captions if text]
    return {"captions": list(dict.fromkeys(texts))} if texts else {}


def _previews(
    session: Session, entries: Sequence[Entry], made: Sequence[Concept], seed: int, notices: list[str]
) -> list[Image.Image | None]:
    """A preview of each concept, kept beside it; None where none can be drawn: what was learned is stored."""
    sheets: list[Image.Image | None] = []
    for entry, concept in zip(entries, made, strict=True):
        try:
            sheet = preview(session.base, concept, seed)
        except KeyboardInterrupt as stop:
            stop.add_note(STORED)
            raise
        except Exception as error:
            sheets.append(None)
            notices.append(
                f"{entry.ref} is stored, but no preview of it could be drawn "
                f"({type(error).__name__}: {error}); try conceptkit compose {entry.name}."
            )
            continue
        sheets.append(sheet)
        if session.distributed.first and session.registry is not None:
            png = io.BytesIO()
            sheet.save(png, format="PNG")
            session.registry.set_preview(entry.name, entry.version, png.getvalue())
    return sheets


def preview(base: bases.Base, concept: Concept, seed: int) -> Image.Image:
    """A row of pictures of the concept alone."""
    from conceptkit.pictures.contact_sheet import grid

    prompt = f"photo of a {' next to a '.join(concept.words)}"
    if concept.kind == "style":
        prompt = f"a picture in the style of {concept.name}"
    with attach(base.pipe, concept):
        drawn = draw(base, [prompt] * PREVIEWS, range(seed, seed + PREVIEWS))
    return grid(drawn, columns=PREVIEWS)


def _about(base: bases.Base, request: TrainRequest) -> dict[str, Any]:
    """What a checkpoint must agree on to be gone on with."""
    subjects = request.subjects
    beside = repr(
        [
            (s.photos.captions, [m and hashlib.sha256(m.tobytes()).hexdigest() for m in s.photos.masks])
            for s in subjects
        ]
    )
    return {
        "name": " + ".join(s.name for s in subjects),
        "kind": subjects[0].kind,
        "class": " + ".join(str(s.noun) for s in subjects),
        "photos": " + ".join(s.photos.digest[:16] for s in subjects),
        "captions and masks": hashlib.sha256(beside.encode()).hexdigest()[:16],
        "base": base.fingerprint.exact,
        "seed": request.seed,
        "recipe": request.config.to_json(),
    }


def _curve(outcome: Outcome) -> Image.Image | None:
    if not outcome.curve:
        return None
    return charts.loss_curve(outcome.curve, outcome.kept, f"{outcome.whole.name}: validation loss")


def _described(base: bases.Base, outcome: Outcome) -> list[str]:
    """One sentence for each subject whose word begins at one of the base's own, or whose photo it told."""
    begun = [
        f"The word of {base.name} that describes {part.name} best is {word!r}; what is learned begins there."
        for part in outcome.parts
        if (word := part.provenance.get("look"))
    ]
    told = [
        f"In {part.provenance['photos'][0]} {base.name} sees {part.name} {scene}, and learns it so that "
        "other prompts are followed; if it is something else, put a caption beside the photo."
        for part in outcome.parts
        if (scene := part.provenance.get("scene"))
    ]
    return begun + told


def _faint(base: bases.Base, shown: photo_files.PhotoSet) -> list[str]:
    """One sentence for photos that are not in the flat colours which are all that the base knows."""
    if not base.family.flatness:
        return []
    flat = [photo_files.flatness(resize.square(photo, 64)) for photo in shown.pictures]
    if sum(flat) / len(flat) >= base.family.flatness:
        return []
    return [
        "These photos look nothing like the storybook's drawings, "
        "so it will catch little more than their colours; "
        "for photographs add --base with a Stable Diffusion folder or hub id, "
        "for example --base stable-diffusion-v1-5/stable-diffusion-v1-5."
    ]
