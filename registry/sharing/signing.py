"""Signed bundles (Ed25519, RFC 8032): keys of one's own, keys one trusts, and whose bundle this is.

A signature covers the manifest, and through its hashes every byte of the bundle. Without one a bundle is as
good as before; `--require-signed` is for those who take concepts only from people they know.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptkit.registry import atomic_files, concept_validation, odd_files, paths, storage_errors
from conceptkit.registry.errors import BadBlob, BadKey, ConceptError
from conceptkit.registry.names import check_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


INSTALL = "pip install 'conceptkit[signing]'"
PREFIX = "ck-ed25519:"
CONTEXT = b"conceptkit bundle, format 1\n"
"""What is signed begins with this, so that a signature made for anything else is none for a bundle."""
RECORD = b"conceptkit record, format 2\n"
"""The same for a record at a remote."""


@dataclass(frozen=True)
class Key:
    """A public key, as text, under the name that it has on this machine."""

    name: str
    public: str
    own: bool = False

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Signer:
    """Whose key signed; name is None for a key that is not known here."""

    public: str
    name: str | None

    @property
    def trusted(self) -> bool:
        """Whether the key is one that you trust."""
        return self.name is not None

    def sentence(self) -> str:
        """Who signed, for a person."""
        if self.name is not None:
            return f"It is signed by {self.name}."
        return f"It is signed with a key that you have not trusted: {self.public}."

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


def create(home: Path, name: str) -> Key:
    """Make a key of one's own. Raises BadKey when the name is taken: a lost key cannot be had back."""
    library = _library()
    key = library.Ed25519PrivateKey.generate()
    text = base64.b64encode(key.private_bytes_raw()) + b"\n"
    with _turn(home):
        _check_free(home, name)
        try:
            atomic_files.write_whole(
                _folder(home) / f"{name}.key", lambda out: out.write(text), replace=False
            )
        except FileExistsError:
            raise _taken(name) from None
    return Key(name, _text(key.public_key().public_bytes_raw()), own=True)


def trust(home: Path, name: str, public: str) -> Key:
    """Remember whose key that is. Raises BadKey when it is no key, or the name stands for another one."""
    _raw(public)
    with _turn(home):
        for key in keys(home):
            if key.public == public:
                raise BadKey(f"That key is here already, as {key.name!r}.")
        _check_free(home, name)
        _write_trusted(home, _trusted(home) | {name: public})
    return Key(name, public)


def distrust(home: Path, name: str) -> Key:
    """Forget a trusted key. Raises BadKey when there is none of that name; own keys stay."""
    with _turn(home):
        trusted = _trusted(home)
        if name not in trusted:
            raise BadKey(
                f"No trusted key is named {name[:80]!r}: `conceptkit keys list` shows those there are."
            )
        gone = Key(name, trusted.pop(name))
        _write_trusted(home, trusted)
    return gone


def keys(home: Path) -> list[Key]:
    """Own keys and trusted ones, by name. Raises BadKey when a file of them is damaged."""
    own = [Key(file.stem, _public(file), own=True) for file in sorted(_folder(home).glob("*.key"))]
    return own + [Key(name, public) for name, public in sorted(_trusted(home).items())]


def signer(home: Path, name: str = "", context: bytes = CONTEXT) -> Callable[[bytes], bytes]:
    """What signs a manifest with the key `name`, or with the only one there is. Raises BadKey."""
    own = {file.stem: file for file in _folder(home).glob("*.key")}
    if not own:
        raise BadKey("There is no key to sign with: make one with `conceptkit keys create NAME`.")
    if name not in own and (name or len(own) > 1):
        told = f"There is no key {name[:80]!r} of your own" if name else "There are several keys of your own"
        raise BadKey(f"{told}: sign with one of {', '.join(sorted(own))}.")
    key = _private(own[name] if name else next(iter(own.values())))

    def sign(manifest: bytes) -> bytes:
        made = {
            "key": _text(key.public_key().public_bytes_raw()),
            "signature": base64.b64encode(key.sign(context + manifest)).decode(),
        }
        return json.dumps(made, sort_keys=True, separators=(",", ":")).encode()

    return sign


def who(home: Path, manifest: bytes, signature: bytes, context: bytes = CONTEXT) -> Signer:
    """Whose signature that is. Raises BadBlob when it is not one of this manifest."""
    library = _library("to find out whose bundle this is")
    from cryptography.exceptions import InvalidSignature

    try:
        value = concept_validation.strict_json(signature.decode("ascii"))
        public, signed = value["key"], base64.b64decode(value["signature"], validate=True)
        library.Ed25519PublicKey.from_public_bytes(_raw(public)).verify(signed, context + manifest)
    except (
        InvalidSignature,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        BadKey,
        RecursionError,
    ) as error:
        raise BadBlob("Its signature is wrong, so somebody has changed it: ask for it again.") from error
    known = {key.public: key.name for key in keys(home)}
    return Signer(public, known.get(public))


def refusal(file: Path, signer: Signer | None) -> str:
    """Why a bundle is refused where only known people's are taken."""
    if signer is None:
        return f"{file} is not signed: ask for a signed bundle, or leave out --require-signed."
    return (
        f"{file} is signed with a key that you do not trust: check with its owner that it is theirs, "
        f"then `conceptkit keys trust NAME {signer.public}`."
    )


def chosen(home: Path, names: Iterable[str]) -> frozenset[str]:
    """The public keys that these names stand for here. Raises BadKey for a name that is no key."""
    known = {key.name: key.public for key in keys(home)}
    if unknown := sorted(set(names) - set(known)):
        raise BadKey(f"No key is named {unknown[0][:80]!r}: `conceptkit keys list` shows those there are.")
    return frozenset(known[name] for name in names)


def _library(why: str = "to sign") -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConceptError(f"A library is missing {why}: {INSTALL}.") from error
    return ed25519


def _turn(home: Path) -> AbstractContextManager[None]:
    """One at a time changes keys: who reads them, and writes them with a change, loses nobody's change."""
    return atomic_files.turn(home, "keys.lock")


def _write_trusted(home: Path, trusted: Mapping[str, str]) -> None:
    text = json.dumps(dict(trusted), indent=2, sort_keys=True).encode()
    atomic_files.write_whole(_folder(home) / "trusted.json", lambda out: out.write(text))


def _taken(name: str) -> BadKey:
    return BadKey(f"{name!r} is a key that is here already: choose another name.")


def _folder(home: Path) -> Path:
    with storage_errors.told(home):
        return paths.make_private(home / "keys")


def _check_free(home: Path, name: str) -> None:
    check_name(name)
    if name in {key.name for key in keys(home)}:
        raise _taken(name)


def _trusted(home: Path) -> dict[str, str]:
    file = _folder(home) / "trusted.json"
    try:
        value = json.loads(odd_files.read_own(file))
        return {check_name(name): _text(_raw(public)) for name, public in value.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, ConceptError, RecursionError) as error:
        raise BadKey(
            f"{file} is damaged: mend it by hand, or delete it and trust your keys again."
        ) from error


def _private(file: Path) -> "Ed25519PrivateKey":
    library = _library()
    try:
        seed = base64.b64decode(odd_files.read_own(file).strip(), validate=True)
        return library.Ed25519PrivateKey.from_private_bytes(seed)
    except (OSError, ValueError, ConceptError) as error:
        raise BadKey(
            f"{file} is damaged: delete it and make another key with `conceptkit keys create`."
        ) from error


def _public(file: Path) -> str:
    return _text(_private(file).public_key().public_bytes_raw())


def _text(raw: bytes) -> str:
    return PREFIX + base64.b64encode(raw).decode()


def _raw(public: str) -> bytes:
    if not isinstance(public, str) or not re.fullmatch(rf"{PREFIX}[A-Za-z0-9+/]{{43}}=", public):
        raise BadKey(
            f"{str(public)[:80]!r} is no public key: copy the line that `conceptkit keys create` printed."
        )
    return base64.b64decode(public.removeprefix(PREFIX))
