"""`conceptkit add`: photos become a concept, or several in one run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import (
    base_option,
    debug_option,
    device_option,
    dtype_option,
    echo_json,
    free_path,
    json_option,
    note,
    out_option,
    quantization_option,
    wrote,
)
from conceptkit.errors import BadRecipe
from conceptkit.learn.config import CHOICES, DEFAULT
from conceptkit.learn.methods.table import METHODS

SIZES = ("tiny", "small", "full")


class MethodName(click.ParamType):
    """A method of the table, which names those of other packages too; none is loaded for the help."""

    name = "method"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The names."""
        return f"[{'|'.join(METHODS.names())}]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself, if there is such a method."""
        if not isinstance(value, str) or value not in METHODS.names():
            self.fail(f"{value!r} is not one of {', '.join(METHODS.names())}.", param, ctx)
        return value


@click.command()
@click.argument("name")
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--class", "nouns", metavar="NOUN", multiple=True, help="What kind of thing it is, for example dog."
)
@click.option(
    "--kind",
    type=click.Choice(["subject", "style"]),
    default="subject",
    show_default=True,
    help="A thing, or a manner of drawing: 'a dog in the style of NAME'.",
)
@base_option
@device_option
@dtype_option
@quantization_option
@click.option(
    "--method",
    type=MethodName(),
    help=f"How to learn.  [default: {DEFAULT}]",
)
@click.option("--adapter", metavar="[keyed|kv|lora|full|image]", help="What learns.  [default: the method's]")
@click.option("--sude", is_flag=True, help="Let it inherit what its class can do; one photo is enough.")
@click.option("--joint", is_flag=True, help="Learn several in one run: NAME=PHOTOS NAME=PHOTOS...")
@click.option("--name", "joint_name", metavar="NAME", help="With --joint: the name of all of them together.")
@click.option("--new-version", is_flag=True, help="Keep what NAME has learned before and add a version.")
@click.option("--resume", is_flag=True, help="Go on with learning that was stopped; give the same options.")
@click.option(
    "--early-stop", is_flag=True, help="Keep the best step by a validation loss, and draw its curve."
)
@click.option(
    "--class-images",
    "priors",
    metavar="PATH",
    multiple=True,
    help="Pictures of the class to hold on to, instead of ones that the base draws.",
)
@click.option("--masks", metavar="DIR", multiple=True, help="A folder of masks, white where the subject is.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same machine: same bytes.")
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='A recipe in TOML: method = "custom", rank = 4, ...; other options go before it.',
)
@click.option("--steps", type=click.IntRange(1), help="All steps, shared between the word and the delta.")
@click.option("--max-train-steps", type=click.IntRange(0), help="Steps of the delta alone.")
@click.option("--learning-rate", type=float, help="Of what learns: the delta, or the word alone.")
@click.option("--train-batch-size", type=click.IntRange(1), help="Views of the photos in a step.")
@click.option("--rank", type=click.IntRange(0), help="Rank of the delta; 0 is full.  [default: the recipe's]")
@click.option("--gradient-accumulation-steps", type=click.IntRange(1), help="Parts of a batch.")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory for a third more time.")
@click.option(
    "--mixed-precision",
    type=click.Choice(CHOICES["mixed_precision"]),
    help="Of the forward pass; fp16 is for CUDA.  [default: fp32]",
)
@click.option(
    "--size",
    "stored_size",
    type=click.Choice(SIZES),
    default="full",
    show_default=True,
    help="How it is stored: every number as learned, or rounded where pictures do not show it.",
)
@click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", help="Change any field of the recipe.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and from where each number comes.")
@json_option
@out_option("pictures", "Where the preview picture goes.")
@debug_option
def add(
    name: str,
    photos: tuple[Path, ...],
    nouns: tuple[str, ...],
    kind: str,
    base: str | None,
    device: str,
    dtype: str,
    quantization: str | None,
    method: str | None,
    adapter: str | None,
    sude: bool,
    joint: bool,
    joint_name: str | None,
    new_version: bool,
    resume: bool,
    early_stop: bool,
    priors: tuple[str, ...],
    masks: tuple[str, ...],
    seed: int,
    file: Path | None,
    steps: int | None,
    rank: int | None,
    stored_size: str,
    fields: tuple[str, ...],
    out: Path,
    dry_run: bool,
    as_json: bool,
    **common: object,
) -> None:
    """Learn a thing from photos.

    PHOTOS are files or folders; what is on them is kept under NAME. A text file beside a photo, 1.txt for
    1.jpg, is its caption. With --joint, --class, --masks and --class-images are NAME=VALUE, once for each.

    \b
    Example:
      conceptkit add my_dog ./photos --class dog
      conceptkit add my_dog ./photos --class dog --method dreambooth --sude
      conceptkit add --joint my_dog=./dog moongate=./gate --class my_dog=dog --class moongate=gate
      conceptkit add my_style ./drawings --kind style
      conceptkit add my_dog ./photos --class dog --method vico
      conceptkit add my_dog ./photos --class dog --config recipe.toml --learning-rate 0.01
    """
    from conceptkit.registry.store import Registry

    shared: dict[str, Any] = {
        "base": base or "storybook",
        "device": device,
        "dtype": dtype,
        "quantization": quantization,
        "new_version": new_version,
        "seed": seed,
        "steps": steps,
        "rank": rank,
        "method": method,
        "adapter": adapter,
        "config": file,
        "sude": sude,
        "early_stopping": early_stop,
        "changes": _changes(steps, common, fields),
        "resume": resume,
        "size": stored_size,
    }
    if dry_run:
        return _plan(name, photos, kind, (nouns, priors), joint, as_json, shared)
    _refuse_json(as_json)
    things = _things(name, photos) if joint else {}
    with _resumable(), Registry() as registry, bar(f"Learning {' and '.join(things) or name}") as progress:
        for one in things or [name]:
            registry.check_free(one, new_version=new_version)

        from conceptkit.workflows import add as library

        shared |= {"registry": registry, "progress": progress}
        if joint:
            if kind == "style":
                raise BadRecipe("--joint learns things, each with its class; learn a style by itself")
            learned: list[Any] = library.add_together(
                things,
                class_nouns=_pairs("--class", nouns),
                masks=_pairs("--masks", masks),
                class_images=_pairs("--class-images", priors),
                name=joint_name,
                **shared,
            )
        else:
            if joint_name or max(len(nouns), len(masks), len(priors)) > 1:
                raise BadRecipe(
                    "--name, and --class, --masks or --class-images more than once, are for --joint; "
                    "add it, or leave them out"
                )
            learned = [
                library.add(
                    name,
                    photos,
                    class_noun=nouns[0] if nouns else None,
                    kind=kind,
                    masks=masks[0] if masks else None,
                    class_images=priors[0] if priors else None,
                    **shared,
                )
            ]
    _write(learned, out, seed)


def _refuse_json(as_json: bool) -> None:
    if as_json:
        raise BadRecipe("--json is for --dry-run; add it, or leave --json out")


def _plan(
    name: str,
    photos: Sequence[Path],
    kind: str,
    beside: tuple[Sequence[str], Sequence[str]],
    joint: bool,
    as_json: bool,
    shared: Mapping[str, Any],
) -> None:
    """Print what `add` would do. beside: class nouns and class images, of which there is one at most."""
    if joint:
        raise BadRecipe("--dry-run plans for one thing; leave --joint out and ask for each by itself")
    from conceptkit.workflows.plan import plan

    noun, images = ((given[0] if given else None) for given in beside)
    found = plan(name, photos, class_noun=noun, kind=kind, class_images=images, **shared)
    if as_json:
        echo_json(found.to_json())
        return
    from tabulate import tabulate

    rows = [(line.what, line.value, line.source) for line in found.lines]
    click.echo(tabulate(rows, headers=("what", "value", "from"), disable_numparse=True))
    for sentence in found.notices:
        note(sentence)


def _write(learned: Sequence[Any], out: Path, seed: int) -> None:
    """Say what was learned, and put its pictures into a folder."""
    from conceptkit.pictures import png_metadata

    for sentence in dict.fromkeys(text for one in learned for text in one.notices):
        note(sentence)
    for one in learned:
        click.echo(f"Learned {one.entry.ref} in {one.seconds:.0f} s; it takes {one.bytes / 1000:,.1f} kB.")
        if one.preview is None:
            continue
        path = free_path(out, one.entry.name, ".png")
        png_metadata.save_png(one.preview, path, concepts=[one.entry.ref], seed=seed)
        wrote(path)
    if (curve := learned[-1].curve) is not None:
        path = free_path(out, f"{learned[-1].entry.name}-curve", ".png")
        png_metadata.save_png(curve, path, concepts=[learned[-1].entry.ref], seed=seed)
        wrote(path)


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C says how to go on, where there is something to go on with."""
    try:
        yield
    except KeyboardInterrupt as stop:
        from conceptkit.workflows.add import STORED

        if notes := getattr(stop, "__notes__", None):
            click.echo(err=True)
            note(
                f"{STORED}."
                if STORED in notes
                else "What was learned so far is kept; give the same command with --resume to go on."
            )
        raise


def _things(first: str, others: Sequence[Path]) -> dict[str, str]:
    """NAME=PHOTOS, by name."""
    return _pairs("--joint", [first, *map(str, others)])


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, by name."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name and value):
            raise BadRecipe(f"{option} takes NAME=VALUE with a value of its own for each, not {text!r}")
        if name in found:
            raise BadRecipe(f"{option} was given {name} twice; give each name once")
        found[name] = value
    return found


def _changes(steps: int | None, common: Mapping[str, object], fields: Sequence[str]) -> dict[str, Any]:
    """The options that are fields of a recipe; what the user sets by name comes last.

    common: value by field, None or False where an option was not given.
    """
    found = {name: value for name, value in common.items() if value is not None and value is not False}
    if steps is not None and "max_train_steps" in found:
        raise BadRecipe("--steps counts those of the word too, --max-train-steps does not; give one of them")
    return found | _pairs("--set", fields)
