"""Learning: photos become a concept in the registry."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptkit.base import devices
from conceptkit.base import pipeline as bases
from conceptkit.data import captions, resize
from conceptkit.data import masks as mask_files
from conceptkit.data import photos as photo_files
from conceptkit.errors import BadRecipe
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import draw
from conceptkit.learn import distributed, mixed_precision, prior_preservation
from conceptkit.learn.checkpoints import CheckpointManager, path_for
from conceptkit.learn.config import DEFAULT, TrainConfig, config_for
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import Outcome, learn_together
from conceptkit.pictures import charts
from conceptkit.workflows.class_noun import noun_of

if TYPE_CHECKING:
    from PIL import Image

    from conceptkit.concepts.concept import Concept
    from conceptkit.registry.entries import Entry
    from conceptkit.registry.store import Registry


PREVIEWS = 4
UNFINISHED = "What was learned so far is kept; resume=True goes on with it"

Photos = Sequence[Path | str] | Path | str
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Learned:
    """What `add` brings back: the registry's entry, the concept, a preview, and what a user should know.

    curve: the validation loss as a picture, where there was one.
    """

    entry: Entry
    concept: Concept
    preview: Image.Image
    seconds: float
    bytes: int
    notices: list[str]
    curve: Image.Image | None = None

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the preview."""
        png = io.BytesIO()
        self.preview.save(png, format="PNG")
        return png.getvalue()


def add(
    name: str,
    photos: Photos,
    *,
    noun: str | None = None,
    base: str | bases.Base = bases.STORYBOOK,
    device: str = devices.AUTO,
    registry: Registry | None = None,
    new_version: bool = False,
    seed: int = 0,
    steps: int | None = None,
    rank: int | None = None,
    method: str = DEFAULT,
    adapter: str | None = None,
    kind: str = "subject",
    changes: Mapping[str, Any] | None = None,
    masks: Path | str | None = None,
    prior_photos: Photos | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Learned:
    """Learn a subject from photos and store it under `name`.

    Without `noun` the name or the photos' folder suggests one; a kind "style" has none.
    device: where a base is loaded that comes by its name. adapter: another than the method's own.
    changes: fields of the recipe.
    masks: a folder of pictures, white where the subject is.
    prior_photos: pictures of the class to hold on to; methods that hold on to some draw them otherwise.
    resume: go on with learning that was stopped.

    Raises BadName, NameTaken, BadPhotos, BadBase, BadDevice or BadRecipe before anything is learned; whatever
    is raised, no concept is stored. A KeyboardInterrupt has the note UNFINISHED where `resume` can go on.
    """
    (learned,) = _add(
        {name: photos},
        {} if noun is None else {name: noun},
        None,
        config_for(method, steps, rank, changes, adapter),
        base=base,
        device=device,
        registry=registry,
        new_version=new_version,
        seed=seed,
        kind=kind,
        masks={} if masks is None else {name: masks},
        prior_photos={} if prior_photos is None else {name: prior_photos},
        resume=resume,
        progress=progress,
    )
    return learned


def add_together(
    photos: Mapping[str, Photos],
    *,
    nouns: Mapping[str, str] | None = None,
    name: str | None = None,
    base: str | bases.Base = bases.STORYBOOK,
    device: str = devices.AUTO,
    registry: Registry | None = None,
    new_version: bool = False,
    seed: int = 0,
    steps: int | None = None,
    rank: int | None = None,
    method: str = DEFAULT,
    adapter: str | None = None,
    changes: Mapping[str, Any] | None = None,
    masks: Mapping[str, Path | str] | None = None,
    prior_photos: Mapping[str, Photos] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[Learned]:
    """Learn several subjects in one run (joint training, Custom Diffusion, 2212.04488, section 3.3).

    photos, nouns, masks, prior_photos: by the subjects' names. Each is stored as a concept of its own, and
    all of them as one under `name`, by default their names joined by hyphens; that one comes last. Where two
    are of one class, pictures of it that were given for either are held on to. Raises what `add` raises.
    """
    if len(photos) < 2:
        raise BadRecipe(f"Learning together takes two or more things, not {len(photos)}; add one with add")
    for what, by_name in (("A class was", nouns), ("Masks were", masks), ("Prior photos were", prior_photos)):
        if unknown := sorted(set(by_name or {}) - set(photos)):
            raise BadRecipe(f"{what} given for {unknown[0]}, which is not learned here; check the name")
    return _add(
        photos,
        dict(nouns or {}),
        name or "-".join(photos)[:64],
        config_for(method, steps, rank, changes, adapter),
        base=base,
        device=device,
        registry=registry,
        new_version=new_version,
        seed=seed,
        kind="subject",
        masks=masks or {},
        prior_photos=prior_photos or {},
        resume=resume,
        progress=progress,
    )


def _add(
    photos: Mapping[str, Photos],
    nouns: Mapping[str, str],
    joint: str | None,
    recipe: TrainConfig,
    *,
    base: str | bases.Base,
    device: str,
    registry: Registry | None,
    new_version: bool,
    seed: int,
    kind: str,
    masks: Mapping[str, Path | str],
    prior_photos: Mapping[str, Photos],
    resume: bool,
    progress: Progress | None,
) -> list[Learned]:
    """What `add` and `add_together` have in common: each subject as it was learned, the joint one last."""
    from conceptkit.registry.store import Registry

    begun = time.monotonic()
    if prior_photos:
        recipe = _with_prior(recipe)
    registry = registry or Registry()
    if joint in photos:
        raise BadRecipe(f"The joint concept and one of its parts are both called {joint}; name it otherwise")
    for name in (*photos, joint) if joint else photos:
        registry.check_free(name, new_version=new_version)
    shown = {name: photo_files.read(where) for name, where in photos.items()}
    if isinstance(base, str):
        loaded = bases.load(base, device=distributed.current().device or devices.choose(device))
    else:
        loaded = bases.refreshed(base)
    notices = mixed_precision.notices(loaded.device, recipe)
    notices += filter(None, [bases.adapters_notice(loaded, " and ".join(photos))])
    subjects = []
    for name, where in photos.items():
        noun = nouns.get(name)
        if kind != "style":
            noun = noun_of(name, noun, where, loaded, notices)
        told, cut = captions.captions(where, shown[name]), mask_files.masks(masks.get(name), shown[name])
        subjects.append(Subject(name, noun, shown[name], kind, told, cut))
        notices += _faint(loaded, shown[name])
    given = _given(loaded, subjects, prior_photos)
    keeper = CheckpointManager(
        path_for(registry.home, joint or next(iter(photos))), _about(loaded, subjects, recipe, seed)
    )
    if given:
        hashes = {noun: hashlib.sha256(one.to_bytes()).hexdigest() for noun, one in given.items()}
        keeper.about = {**keeper.about, "prior_photos": hashes}
    if resume:
        keeper.resume()
    try:
        outcome = learn_together(
            loaded,
            subjects,
            recipe,
            name=joint,
            seed=seed,
            registry=registry,
            tick=progress or _silent,
            given=given,
            keeper=keeper,
        )
        made = [*outcome.parts, outcome.whole] if joint else [outcome.whole]
        sheets = [preview(loaded, concept, seed) for concept in made]
    except KeyboardInterrupt as stop:
        if keeper.unfinished:
            stop.add_note(UNFINISHED)
        raise
    notices += _described(loaded, outcome)
    entries = _store(registry, made, sheets, subjects, new_version)
    seconds, curve = time.monotonic() - begun, _curve(outcome)
    learned = [
        Learned(*each, seconds, each[0].bytes, [*notices, *keeper.notices], curve)
        for each in zip(entries, made, sheets, strict=True)
    ]
    if distributed.current().first:
        keeper.drop()
    return learned


def _with_prior(recipe: TrainConfig) -> TrainConfig:
    """The recipe, holding on to pictures of the class even if it would do without any."""
    if not recipe.steps:
        raise BadRecipe(
            f"{recipe.method} learns a word alone, which leaves its class as it is; leave --prior-photos out"
        )
    if not recipe.prior_batch:
        raise BadRecipe(
            "prior_batch = 0 shows no picture of the class; raise it, or leave --prior-photos out"
        )
    return recipe if recipe.prior_weight else replace(recipe, prior_weight=1.0)


def _store(
    registry: Registry,
    made: Sequence[Concept],
    sheets: Sequence[Image.Image],
    subjects: Sequence[Subject],
    new_version: bool,
) -> list[Entry]:
    """The concepts' entries, all of them or none; of several processes the first one stores them."""
    from conceptkit.registry.entries import New

    here = distributed.current()
    with here.in_turn():
        if not here.first:
            return [registry.get(concept.name) for concept in made]
        news = [New(c.name, c.to_bytes(), c.summary() | _said(c, subjects)) for c in made]
        entries = registry.add_many(news, new_version=new_version)
        for entry, sheet in zip(entries, sheets, strict=True):
            png = io.BytesIO()
            sheet.save(png, format="PNG")
            registry.set_preview(entry.name, entry.version, png.getvalue())
        return entries


def _said(concept: Concept, subjects: Sequence[Subject]) -> dict[str, list[str]]:
    """The captions of its photos, for searching; they are in no concept's bytes."""
    told = [text for s in subjects if s.name in concept.words for text in s.captions if text]
    return {"captions": list(dict.fromkeys(told))} if told else {}


def preview(base: bases.Base, concept: Concept, seed: int) -> Image.Image:
    """A row of pictures of the concept alone."""
    from conceptkit.pictures.contact_sheet import grid

    prompt = f"photo of a {' next to a '.join(concept.words)}"
    if concept.kind == "style":
        prompt = f"a picture in the style of {concept.name}"
    with attach(base.pipe, concept):
        drawn = draw(base, [prompt] * PREVIEWS, range(seed, seed + PREVIEWS))
    return grid(drawn, columns=PREVIEWS)


def _given(
    base: bases.Base, subjects: Sequence[Subject], photos: Mapping[str, Photos]
) -> dict[str, prior_preservation.ClassImages]:
    """The user's own pictures of classes, by class noun."""
    found: dict[str, list[prior_preservation.ClassImages]] = {}
    for subject in subjects:
        if (where := photos.get(subject.name)) is None:
            continue
        if subject.noun is None:
            raise BadRecipe(
                f"{subject.name} has no class that pictures could hold on to; leave --prior-photos out"
            )
        shown = photo_files.read(where)
        own = prior_preservation.of_photos(base, shown, subject.noun, captions.captions(where, shown))
        found.setdefault(subject.noun, []).append(own)
    return {noun: prior_preservation.joined(sets) for noun, sets in found.items()}


def _about(base: bases.Base, subjects: Sequence[Subject], recipe: TrainConfig, seed: int) -> dict[str, Any]:
    """What a checkpoint must agree on to be gone on with."""
    beside = repr(
        [(s.captions, [m and hashlib.sha256(m.tobytes()).hexdigest() for m in s.masks]) for s in subjects]
    )
    return {
        "name": " + ".join(s.name for s in subjects),
        "kind": subjects[0].kind,
        "class": " + ".join(str(s.noun) for s in subjects),
        "photos": " + ".join(s.photos.digest[:16] for s in subjects),
        "captions and masks": hashlib.sha256(beside.encode()).hexdigest()[:16],
        "base": base.fingerprint.exact,
        "seed": seed,
        "recipe": recipe.to_json(),
    }


def _curve(outcome: Outcome) -> Image.Image | None:
    if not outcome.curve:
        return None
    return charts.loss_curve(outcome.curve, outcome.kept, f"{outcome.whole.name}: validation loss")


def _described(base: bases.Base, outcome: Outcome) -> list[str]:
    """One sentence for each subject whose word begins at one of the base's own, or whose photo it told."""
    begun = [
        f"The word of {base.name} that describes {part.name} best is {look!r}; what is learned begins there."
        for part in outcome.parts
        if (look := part.provenance.get("look"))
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


def _silent(done: int, total: int, text: str = "") -> None:
    return
