"""A concept: a name, its tokens, what it adds to a base, where it came from; immutable."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from struct import error as StructError
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor

from conceptkit.base.fingerprint import Fingerprint
from conceptkit.concepts.codec import damaged, parse, to_bytes
from conceptkit.concepts.codec.compact import PARTS, Coded, parts_of
from conceptkit.concepts.delta import Delta
from conceptkit.concepts.reference import Reference
from conceptkit.concepts.routing import Routing
from conceptkit.errors import BadBlob
from conceptkit.pictures import html
from conceptkit.registry import private_names
from conceptkit.renamed import method_today

if TYPE_CHECKING:
    from conceptkit.registry.store import Entry, Registry


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept, or a merge of several.

    tokens: "<my_dog>" -> per text encoder its embedding rows (k, width of that encoder).
    words: a name in a prompt -> the text it stands for: {"my_dog": "<my_dog> dog"}.
    delta: what it adds to the base; a mapping to tuples (up, down) or (weight,) is made one.
    rows: (s, d) text features of its own words over many contexts, and of its class noun where it leaves that
        alone, so that composing encodes no prompt.
    recipe, provenance: JSON without timestamps, so that the same seed gives the same bytes. A local base's
        path and the file names of the photos are known to this value and to `summary`, not to the bytes.
    reference: a photo that is looked at in every step of drawing, and how; None for most.
    coded: the numbers that delta and tokens are stored as, where it was made smaller; None for other tensors.
    """

    name: str
    kind: str
    noun: str | None
    base: Fingerprint
    base_name: str
    tokens: Mapping[str, tuple[Tensor, ...]]
    words: Mapping[str, str]
    delta: Delta
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: Tensor | None = None
    reference: Reference | None = None
    coded: Coded | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", Delta(self.delta))
        if self.coded is not None and not self.coded.describes(self.delta, self.tokens):
            object.__setattr__(self, "coded", None)

    @cached_property
    def routing(self) -> Routing | None:
        """Whose the ranks of its delta are; None where all act. Raises BadBlob when that is damaged."""
        return Routing.from_recipe(self.recipe, self.name)

    def to_bytes(self) -> bytes:
        """Safetensors bytes, the same for the same concept; see `codec.to_bytes`."""
        return to_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Concept":
        """The concept in these bytes, as float32. Raises BadBlob when they are anything else."""
        try:
            return cls(**parse(data))
        except (
            SafetensorError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            AssertionError,
            StructError,
        ) as error:
            raise BadBlob(damaged(f"{type(error).__name__} while reading it")) from error
        except (RuntimeError, OverflowError, MemoryError) as error:
            raise BadBlob(damaged("its sizes do not fit together")) from error

    def summary(self) -> dict[str, Any]:
        """What the registry's index shows without opening the concept."""
        shown = {} if self.reference is None else {"reference": True}
        photos = self.provenance.get(private_names.PHOTOS) or []
        photos = (
            [name for own in photos.values() for name in own] if isinstance(photos, dict) else list(photos)
        )
        rounded = {} if self.coded is None else {"rounded": True, PARTS: parts_of(self.coded)}
        beside = 0 if self.reference is None else self.reference.maps.rank
        return {
            "kind": self.kind,
            "noun": self.noun,
            "base": {"architecture": self.base.architecture, "exact": self.base.exact},
            "base_name": self.base_name,
            "method": self.recipe.get("method"),
            "rank": max(self.delta.rank, beside),
            "bytes": len(self.to_bytes()),
            "tokens": sorted(self.tokens),
            "parents": list(self.provenance.get("parents", [])),
            "weights": list(self.provenance.get("weights", [])),
            **shown,
            **({private_names.PHOTOS: photos} if photos else {}),
            **rounded,
        }

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        about = self.summary()
        shown = {name: about[name] for name in ("kind", "noun", "base_name", "method", "rank", "bytes")}
        shown["method"] = method_today(shown["method"])
        words = ", ".join(f"{word} = {text}" for word, text in self.words.items())
        made = "made smaller from" if self.provenance.get("how") == "shrink" else "merged from"
        return html.facts(self.name, {**shown, "words": words, made: ", ".join(about["parents"])})

    def called(self, name: str) -> "Concept":
        """The same under another name, its word in prompts from then on; a merge keeps its parts' words."""
        if name == self.name or set(self.words) != {self.name}:
            return self
        return replace(self, name=name, words={name: self.words[self.name]})


def read(registry: "Registry", name: str) -> Concept:
    """What the registry holds under that name. Raises UnknownConcept, and BadBlob when it cannot be read."""
    entry = registry.get(name)
    data = registry.read(entry)
    try:
        concept = Concept.from_bytes(data).called(entry.name)
    except BadBlob as error:
        again = f"remove it with `conceptkit rm {entry.ref}` and learn it again"
        raise BadBlob(f"{entry.ref} is stored as bytes that are not a concept; {again}") from error
    told = dict(concept.provenance)
    if photos := entry.summary.get(private_names.PHOTOS):
        told[private_names.PHOTOS] = photos
    return replace(concept, base_name=base_of(entry, concept.base_name), provenance=told)


def base_of(entry: "Entry", told: str) -> str:
    """Where the base of a stored concept is on this machine, as its index knows; `told`: by its own bytes."""
    known = str(entry.summary.get("base_name") or told)
    return known if private_names.public_base(known) == private_names.public_base(told) else told
