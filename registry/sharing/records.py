"""What a remote tells of a version of a name: small files of JSON, of which nothing is believed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from conceptkit.registry import concept_validation
from conceptkit.registry.catalogue import labels
from conceptkit.registry.errors import ConceptError
from conceptkit.registry.sharing import bundle, incoming
from conceptkit.registry.sources import is_digest

FORMAT = 1
SIGNED = 2
"""The format of a record with a signature."""
Labels = tuple[tuple[str, ...], tuple[str, ...]]
Bytes = bytes  # inside of a record, `bytes` is a size


@dataclass(frozen=True)
class Record:
    """A version of a name, as a remote tells of it; nothing of it is believed."""

    name: str
    hash: str
    bytes: int
    created: str
    preview: tuple[str, int] | None  # sha256 and size
    tags: tuple[str, ...]
    notes: tuple[str, ...]

    def to_bytes(self, sign: Callable[[Bytes], Bytes] | None = None) -> Bytes:
        """JSON, the same bytes for the same record and key."""
        if sign is None:
            return bundle.dumps({"format": FORMAT, **vars(self)})
        told = {"format": SIGNED, **vars(self)}
        return bundle.dumps(told | {"signature": sign(bundle.dumps(told)).decode("ascii")})


@dataclass
class Known:
    """What all records of a name tell together, in as little as is needed of it."""

    oldest: dict[str, Record] = field(default_factory=dict)  # by hash, without tags and notes
    previews: dict[str, tuple[str, int]] = field(default_factory=dict)
    tags: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    @classmethod
    def by_name(cls, records: Iterable[Record]) -> "dict[str, Known]":
        """What records tell of each name. Raises ConceptError when they tell more than one name can have."""
        known: dict[str, Known] = {}
        for record in records:
            known.setdefault(record.name, cls()).add(record)
        return known

    def add(self, record: Record) -> None:
        """Count one more record in. Raises ConceptError when it is one too many."""
        self.tags |= dict.fromkeys(record.tags)
        self.notes |= dict.fromkeys(record.notes)
        if len(self.tags) + len(self.notes) > labels.MOST:
            raise ConceptError(f"its records have over {labels.MOST:,} tags and notes; push it again.")
        bare = replace(record, tags=(), notes=())
        self.oldest[record.hash] = min(self.oldest.get(record.hash, bare), bare, key=moment)
        if record.preview:
            self.previews.setdefault(record.hash, record.preview)


def parse_record(data: bytes, name: str) -> Record:
    """The record in these bytes, if it is one of `name` or of its twin in another case. Raises ConceptError.

    Where a disk folds case, both lie in one folder.
    """
    try:
        value = concept_validation.strict_json(data.decode("ascii"))
        form = value.pop("format")
        if type(form) is not int or form not in (FORMAT, SIGNED):
            raise ConceptError("a newer conceptkit wrote of it; update conceptkit.")
        if form == SIGNED:
            value.pop("signature")
        tags, notes = incoming.check_texts(value.pop("tags"), value.pop("notes"))
        preview = value.pop("preview")
        record = Record(**value, preview=None if preview is None else tuple(preview), tags=tags, notes=notes)
        sizes = [(record.hash, record.bytes, concept_validation.LARGEST)]
        if record.preview is not None:
            sizes.append((*record.preview, incoming.LARGEST_PREVIEW))
        for digest, size, most in sizes:
            if not is_digest(digest) or type(size) is not int or not 0 <= size <= most:
                raise ValueError
        if not isinstance(record.created, str) or record.name.lower() != name.lower():
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConceptError("its record at the remote is damaged; push it there again.") from error
    return record


def moment(record: Record) -> tuple[str, str]:
    """By what records are put in order of their age; of one moment, all who look put them alike."""
    return record.created, record.hash
