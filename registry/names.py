"""What a concept may be called: a word in a prompt, a token, and a file name on every disk."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from conceptkit.registry.errors import BadName, UnknownConcept

LONGEST = 64
LISTED = 20
"""Up to so many names are listed beside the nearest one."""
_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_-]{{0,{LONGEST - 1}}}")

DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(10))}
"""What no file may be called on Windows, in any case and with any ending."""

EXPORTED = {"pytorch_lora_weights", "readme"}
"""Files that lie beside those of a concept's tokens, which have its name."""


def check_name(name: str) -> str:
    """`name` itself; BadName unless it is a letter followed by at most 63 letters, digits, `_` and `-`."""
    if _NAME.fullmatch(name):
        if name.upper() in DEVICES:
            raise BadName(
                f"{name!r} is a device on Windows and can be no file there: choose another name, "
                f"for example '{name}_1'."
            )
        if name.lower() in EXPORTED:
            raise BadName(
                f"{name!r} is what a file of an export is called: choose another name, "
                f"for example '{name}_1'."
            )
        return name
    shown = name if len(name) <= LONGEST else name[:40] + "..."
    if wish := tidy(name):
        wish = f", for example {wish!r}"
    raise BadName(
        f"{shown!r} cannot be a concept's name: use a letter followed by at most {LONGEST - 1} "
        f'letters, digits, "_" and "-"{wish}.'
    )


def split_version(name: str) -> tuple[str, int | None]:
    """`"my_dog@2"` is version 2 of `my_dog`, `"my_dog"` is version None; BadName when it is no number."""
    bare, at, version = name.partition("@")
    if not at:
        return name, None
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise BadName(
            f"{name[:80]!r} has no version number after the '@': write a number there, as in '{bare[:64]}@2'."
        )
    return bare, int(version)


def unknown(name: str, known: Iterable[str]) -> UnknownConcept:
    """The error for a name that is not there, with the nearest one that is."""
    known = sorted(known)
    lowered = {other.lower(): other for other in known}
    if near := get_close_matches(name.lower(), lowered, n=1, cutoff=0.5):
        advice = f"did you mean {lowered[near[0]]!r}?"
    elif known:
        advice = "`conceptkit list` shows the ones you have."
    else:
        advice = f"teach it with `conceptkit add {name[:LONGEST]} PHOTOS`."
    return UnknownConcept(f"There is no concept named {name[:80]!r}: {advice}")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name that a misspelt one probably means."""
    folded = {known.casefold(): known for known in sorted(names)}
    return next((folded[found] for found in get_close_matches(name.casefold(), folded, n=1)), None)


def choose(name: str, known: Collection[str]) -> str:
    """What to do about a name that is none of these: the nearest first, then all, if a person reads them."""
    every = f"choose one of {', '.join(known)}"
    if (near := nearest(name, known)) is None:
        return every
    return f"did you mean {near!r}?" + (f" If not, {every}" if len(known) <= LISTED else "")


def tidy(name: str) -> str:
    """The nearest allowed name, or an empty string when nothing is left of it."""
    tidy = re.sub(r"[^A-Za-z0-9_-]+", "_", name).lstrip("_-0123456789").rstrip("_-")
    return tidy[: LONGEST // 2]
