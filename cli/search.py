"""`conceptkit search`, and what people say about concepts: `tag`, `note`, `favourite`. No torch in here."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

import click

from conceptkit.cli.listing import echo_entries
from conceptkit.cli.shared_options import MOST, debug_option, echo_json, json_option
from conceptkit.cli.terminal import echo, local
from conceptkit.errors import UnknownConcept
from conceptkit.renamed import method_today

if TYPE_CHECKING:
    from conceptkit.registry.catalogue.search import Filters
    from conceptkit.registry.store import Registry


Decorated = TypeVar("Decorated", bound=Callable[..., Any])

BYTES = {"": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}


class Size(click.ParamType):
    """`800`, `20kB` or `1.5MB`, in powers of 1000, as bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of "20kB", "1.5 MB" or a plain number."""
        text = str(value).strip().lower()
        number = text.rstrip("kmgb ")
        try:
            return min(int(float(number) * BYTES[text[len(number) :].strip()]), MOST)
        except (ValueError, KeyError, OverflowError):
            self.fail(f"{value!r} is no size: write it as in 20kB or 1.5MB.", param, ctx)


def filter_options(command: Decorated) -> Decorated:
    """The options that `filters` reads."""
    for option in (
        click.option("--until", metavar="DATE", help="Only what was added on that day or before."),
        click.option(
            "--since", metavar="DATE", help="Only what was added on that day (2026-01-31) or later."
        ),
        click.option("--max-size", type=Size(), metavar="SIZE", help="Only concepts of at most that size."),
        click.option(
            "--min-size", type=Size(), metavar="SIZE", help="Only concepts of at least that size (20kB)."
        ),
        click.option("--favourite", is_flag=True, help="Only favourites."),
        click.option("--tag", metavar="TAG", help="Only concepts with that tag."),
        click.option("--method", metavar="METHOD", help="Only what was learned or merged that way."),
        click.option("--class", "noun", metavar="NOUN", help="Only things of that class."),
        click.option("--base", metavar="ID|PATH", help="Only concepts of that base."),
    ):
        command = option(command)
    return command


def filters(values: dict[str, Any]) -> "Filters":
    """What `filter_options` were given; a folder is known by its full path, whatever it is called here."""
    from conceptkit.registry.catalogue.search import Filters
    from conceptkit.registry.paths import expanded

    if (base := values.get("base")) and base != "storybook" and (folder := expanded(base)).is_dir():
        values = {**values, "base": str(folder.resolve())}
    if method := values.get("method"):
        from conceptkit.merging.request import stored_name

        values = {**values, "method": stored_name(method)}
    return Filters(**values)


def nearest_filters(registry: "Registry", given: "Filters") -> str:
    """ "did you mean --base storybook?" where a filter has a value that no concept has; else empty."""
    from conceptkit.registry.catalogue import search as catalogue

    near = catalogue.nearest_filters(registry, given)
    options = {"noun": "class"}
    meant = " ".join(f"--{options.get(name, name)} {method_today(value)}" for name, value in near.items())
    return f"did you mean {meant}?" if meant else ""


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@filter_options
@click.option(
    "--limit", type=click.IntRange(1, MOST), default=50, show_default=True, help="Show at most so many."
)
@json_option
@debug_option
def search(words: tuple[str, ...], limit: int, as_json: bool, **values: Any) -> None:
    """Search names, classes, tags, captions and notes.

    All words must be found; of the last one the beginning is enough.

    \b
    Example:
      conceptkit search blue dog --tag garden
    """
    from conceptkit.registry.catalogue import search as catalogue
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        entries = catalogue.search(registry, " ".join(words), filters(values), limit=limit)
        if entries or as_json:
            echo_entries(registry, entries, as_json)
            return
        near = catalogue.nearest_words(registry, words)
        meant = nearest_filters(registry, filters(values))
    advice = f"did you mean {' '.join(near)}?" if near else meant or "`conceptkit list` shows what there is."
    echo(f"Nothing has {' and '.join(words)}; {advice}")


@click.command()
@click.argument("name")
@click.argument("tags", nargs=-1, metavar="[TAG]...")
@click.option("--remove", multiple=True, metavar="TAG", help="Take that tag off; may be repeated.")
@json_option
@debug_option
def tag(name: str, tags: tuple[str, ...], remove: tuple[str, ...], as_json: bool) -> None:
    """Put tags on a concept, or show them.

    NAME may have a * in it: then all concepts that it fits are tagged.

    \b
    Example:
      conceptkit tag my_dog pets garden
      conceptkit tag "ink_*" drawings
    """
    from conceptkit.registry.catalogue import labels
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        names = _fitting(registry, name)
        found = {each: labels.tag(registry, each, tags, remove) for each in names}
    if as_json:
        echo_json(found if "*" in name else found[name])
        return
    for each, held in found.items():
        echo(f"{each}: {', '.join(held) or 'no tags'}")


def _fitting(registry: "Registry", name: str) -> list[str]:
    """The name itself, or all names that a pattern with a * fits. Raises UnknownConcept when that is none."""
    if "*" not in name:
        return [name]
    found = [entry.name for entry in registry.list() if fnmatchcase(entry.name, name)]
    if not found:
        raise UnknownConcept(f"No concept fits {name[:80]!r}; `conceptkit list` shows those there are")
    return found


@click.command()
@click.argument("name")
@click.argument("text", required=False)
@click.option(
    "--remove", type=click.IntRange(1, MOST), metavar="NUMBER", help="Take the note of that number off."
)
@json_option
@debug_option
def note(name: str, text: str | None, remove: int | None, as_json: bool) -> None:
    """Add a note to a concept, or show its notes.

    \b
    Example:
      conceptkit note my_dog "Photos from the garden; too green in the snow"
    """
    from conceptkit.registry.catalogue import labels
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        if remove is not None:
            labels.drop_note(registry, name, remove)
        if text is not None:
            labels.note(registry, name, text)
        found = labels.notes(registry, name)
    if as_json:
        echo_json([each.to_json() for each in found])
    else:
        for each in found:
            echo(f"{each.number}  {local(each.created)[:10]}  {each.text}")
        if not found:
            echo(f"{name} has no notes.")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--remove", is_flag=True, help="Make them favourites no more.")
@debug_option
def favourite(names: tuple[str, ...], remove: bool) -> None:
    """Mark concepts as favourites.

    \b
    Example:
      conceptkit favourite my_dog moongate
    """
    from conceptkit.registry.catalogue import labels
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        for name in names:
            registry.get(name)  # all are known, or none is marked
        for name in names:
            labels.favourite(registry, name, not remove)
    echo(f"{', '.join(names)}: {'no favourite any more' if remove else 'favourite'}")
