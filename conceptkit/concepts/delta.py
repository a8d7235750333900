"""Deltas: what a concept adds to the linear maps of a base, and their algebra.

A `Delta` maps the name of a linear map to its `Factors`, whose product (o, d) is added to that map. Maps that
share one `down` store it once. Deltas lie on keys and values of cross-attention, and some on other maps too;
those of a text encoder have its name in front, "text_encoder.encoder.layers.0.self_attn.q_proj".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from conceptkit.errors import ConceptError

READS_TEXT = (
    *("attn2.to_k", "attn2.to_v"),
    *("context_embedder", "txt_in", "cap_embedder.1", "caption_embedder.1"),
    *(f"attentions.{k}.add_{map}_proj" for k in range(10) for map in "kv"),
)
"""Endings of the maps that read text features; the others of a wide delta read what the layer before made."""
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Maps of these parts of a pipeline have the part's name in front; the others are the denoiser's."""


UNET = re.compile(
    r"(?:_orig_mod\.)?(?:down_blocks|mid_block|up_blocks|conv_|time_embedding|add_embedding|class_embedding|encoder_hid_proj)"
)
"""Names of a UNet's maps; a compiled one has them behind `_orig_mod`."""


def denoiser_attribute(name: str) -> str:
    """What pipelines call the denoiser that has a map of that name: "unet" or "transformer"."""
    return "unet" if UNET.match(name) else "transformer"


@dataclass(frozen=True, eq=False)
class Factors:
    """What is added to one linear map (o, d): `up` (o, r) times `down` (r, d), or all of `weight` (o, d).

    Raises ConceptError when it is neither, or when up and down have different ranks.
    """

    up: Tensor | None = None
    down: Tensor | None = None
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        given = [factor is not None for factor in (self.up, self.down, self.weight)]
        if given not in ([True, True, False], [False, False, True]):
            raise ConceptError("The factors of a map are up and down, or a weight; give either")
        if self.up is not None and self.down is not None and self.up.shape[1] != self.down.shape[0]:
            shapes = f"{tuple(self.up.shape)} and {tuple(self.down.shape)}"
            raise ConceptError(f"up and down of shapes {shapes} do not fit; give both the same rank")

    @classmethod
    def of(cls, tensors: Factors | Iterable[Tensor]) -> Factors:
        """Factors from (up, down) or (weight,); those that are factors already stay."""
        if isinstance(tensors, Factors):
            return tensors
        match tuple(tensors):
            case (weight,):
                return cls(weight=weight)
            case (up, down):
                return cls(up, down)
        raise ConceptError("The factors of a map are (up, down) or (weight,); give one or two tensors")

    def __iter__(self) -> Iterator[Tensor]:
        """The tensors from the output's side to the input's: up and down, or the weight."""
        return iter(self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """(up, down), or (weight,)."""
        return tuple(factor for factor in (self.up, self.down, self.weight) if factor is not None)

    @property
    def first(self) -> Tensor:
        """The tensor on the output's side, up or the weight: (o, r) or (o, d)."""
        return self.tensors[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, d), of the map."""
        return self.tensors[0].shape[0], self.tensors[-1].shape[1]

    @property
    def rank(self) -> int:
        """The largest rank that the product can have."""
        return min(min(factor.shape) for factor in self.tensors)

    def apply(self, rows: Tensor) -> Tensor:
        """What is added at the features `rows` (s, d): (s, o), in the precision of the rows."""
        for factor in reversed(self.tensors):
            rows = rows @ factor.to(rows).T
        return rows

    def dense(self) -> Tensor:
        """The (o, d) matrix itself: tests and full-matrix formats need it, composing does not."""
        return self.first if self.down is None else self.first @ self.down

    def map(self, change: Callable[[Tensor], Tensor]) -> Factors:
        """The same with every tensor changed, as by a cast or a copy."""
        return Factors.of(change(factor) for factor in self.tensors)

    def scaled(self, weight: float) -> Factors:
        """The product times a weight; `down` stays the very tensor."""
        return Factors.of((weight * self.first, *self.tensors[1:]))

    def low_rank(self, narrow: bool = False) -> tuple[Tensor, Tensor]:
        """(up, down) with the same product; a full matrix (o, d) has an identity beside it, which is exact.

        narrow: the identity stands on the shorter side, so that the rank is min(o, d); else it is `down`.
        """
        if self.up is not None and self.down is not None:
            return self.up, self.down
        weight, (o, d) = self.first, self.shape
        if narrow and o < d:
            return torch.eye(o, dtype=weight.dtype), weight
        return weight, torch.eye(d, dtype=weight.dtype)

    def truncated(self, rank: int, balanced: bool = False) -> Factors:
        """The best approximation of that rank, in the plain norm, of the (o, d) product: (o, r), (r, d).

        balanced: each singular value goes to both sides as its root, as adapters that go on learning want
        them, and factors of no larger rank stay as they are. Else all of it goes to `up`, which keeps the
        rows of `down` of length 1; a product of factors is then never built.
        """
        if balanced and rank >= self.rank:
            return self
        if self.down is None or balanced:
            left, sizes, right = torch.linalg.svd(self.dense().double(), full_matrices=False)
        else:
            basis, inner = torch.linalg.qr(self.first.double())
            around, outer = torch.linalg.qr(self.down.double().T)
            left, sizes, right = torch.linalg.svd(inner @ outer.T, full_matrices=False)
            left, right = basis @ left, right @ around.T
        sizes = sizes[:rank]
        if balanced:
            root = sizes.sqrt()
            return Factors((left[:, :rank] * root).float(), (root.unsqueeze(1) * right[:rank]).float())
        return Factors((left[:, :rank] * sizes).float(), right[:rank].float())

    def equal(self, other: Factors) -> bool:
        """Whether both hold the same tensors, bit for bit."""
        mine, theirs = self.tensors, other.tensors
        return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


Maps: TypeAlias = Mapping[str, Factors | Sequence[Tensor]]


class Delta(Mapping[str, Factors]):
    """Factors by the names of the maps that they are added to; immutable.

    maps: the factors, or tuples (up, down) or (weight,).
    shared: of each map with a `down` a key; maps of one key have one and the same down, and the key stays
        with them through copies and casts. None: maps whose downs are equal in value share them.
    """

    def __init__(self, maps: Maps | None = None, shared: Mapping[str, Hashable] | None = None) -> None:
        self._shared: Mapping[str, Hashable] | None
        self._maps = {name: Factors.of(factors) for name, factors in (maps or {}).items()}
        self._shared = shared if shared is not None or not isinstance(maps, Delta) else maps._shared

    def __getitem__(self, name: str) -> Factors:
        return self._maps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __repr__(self) -> str:
        return f"Delta({len(self)} maps, rank {self.rank})"

    @property
    def shared(self) -> Mapping[str, Hashable]:
        """Map -> key of its down, for maps that have one: equal keys, one down."""
        if self._shared is None:
            self._shared = {name: _digest(f.down) for name, f in self.items() if f.down is not None}
        return self._shared

    @property
    def downs(self) -> list[Tensor]:
        """The downs, each one once, in the order of the maps."""
        found = {self.shared[name]: f.down for name, f in self.items() if f.down is not None}
        return list(found.values())

    @property
    def rank(self) -> int:
        """The largest rank among the maps; 0 when nothing is added."""
        return max((factors.rank for factors in self.values()), default=0)

    def __add__(self, other: Delta) -> Delta:
        return Delta.sum((self, other))

    def __mul__(self, weight: float) -> Delta:
        """The delta times a weight; what maps share stays shared."""
        return Delta({name: factors.scaled(weight) for name, factors in self.items()}, self._shared)

    __rmul__ = __mul__

    def __or__(self, given: Maps) -> Delta:
        """The maps of both; of a map that both have, the other's."""
        other = Delta(given)
        keys = {
            name: (side, part.shared.get(name)) for side, part in enumerate((self, other)) for name in part
        }
        return Delta({**self, **other}, {name: key for name, key in keys.items() if key[1] is not None})

    def only(self, names: Collection[str]) -> Delta:
        """The part on these maps."""
        return Delta({name: factors for name, factors in self.items() if name in names}, self._shared)

    def without(self, names: Collection[str]) -> Delta:
        """The part on all other maps."""
        return Delta({name: factors for name, factors in self.items() if name not in names}, self._shared)

    def map(self, change: Callable[[Tensor], Tensor]) -> Delta:
        """The same with every tensor changed, as by a cast or a copy; what maps share is changed once."""
        changed: dict[Hashable, Tensor] = {}
        maps: dict[str, Factors] = {}
        for name, factors in self.items():
            if factors.down is None:
                maps[name] = factors.map(change)
                continue
            key = self.shared[name]
            if key not in changed:
                changed[key] = change(factors.down)
            maps[name] = Factors(change(factors.first), changed[key])
        return Delta(maps, self.shared)

    def truncated(self, rank: int, balanced: bool = False) -> Delta:
        """Each map cut to that rank, see `Factors.truncated`."""
        return Delta({name: factors.truncated(rank, balanced) for name, factors in self.items()})

    def rows(self, sizes: Mapping[str, int], rows: Tensor) -> Tensor:
        """C D^T (s, O) for features `rows` C (s, d), stacked as `sizes` (map -> o) says.

        Maps that the delta lacks add 0.
        """
        return torch.cat(
            [
                self[name].apply(rows) if name in self else rows.new_zeros(len(rows), o)
                for name, o in sizes.items()
            ],
            dim=1,
        )

    def same(self, other: Delta) -> bool:
        """Whether both add the same to the same maps, bit for bit."""
        return self.keys() == other.keys() and all(f.equal(other[name]) for name, f in self.items())

    def by_component(self) -> dict[str, Delta]:
        """The delta of each part of a pipeline by the names maps have there.

        A part is "unet", "transformer" or a text encoder.
        """
        found: dict[str, dict[str, str]] = {}
        for name in self:
            part, _, rest = name.partition(".")
            inside = part in ENCODERS
            found.setdefault(part if inside else denoiser_attribute(name), {})[name] = (
                rest if inside else name
            )
        return {part: self._renamed(names) for part, names in found.items()}

    def prefixed(self, part: str) -> Delta:
        """The delta of a part of a pipeline under the names that its maps have in the whole."""
        return self._renamed({name: f"{part}.{name}" for name in self})

    def _renamed(self, names: Mapping[str, str]) -> Delta:
        keys = self.shared
        return Delta(
            {new: self[old] for old, new in names.items()},
            {new: keys[old] for old, new in names.items() if old in keys},
        )

    @classmethod
    def sum(cls, deltas: Sequence[Delta]) -> Delta:
        """D_1 + D_2 + ...: low ranks side by side, full matrices added where a delta has one."""
        maps: dict[str, Factors] = {}
        shared: dict[str, Hashable] = {}
        joined: dict[Hashable, Tensor] = {}
        for name in dict.fromkeys(name for delta in deltas for name in delta):
            summands = [delta[name] for delta in deltas if name in delta]
            key = tuple((i, delta.shared.get(name)) for i, delta in enumerate(deltas) if name in delta)
            if any(factors.down is None for factors in summands) and len(summands) > 1:
                maps[name] = Factors(weight=torch.stack([f.dense() for f in summands]).sum(dim=0))
                continue
            if len(summands) == 1:
                maps[name] = summands[0]
            else:
                ups, downs = zip(*summands, strict=True)
                if key not in joined:
                    joined[key] = torch.cat(downs)
                maps[name] = Factors(torch.cat(ups, dim=1), joined[key])
            if maps[name].down is not None:
                shared[name] = key
        return cls(maps, shared)

    @classmethod
    def stacked(cls, deltas: Sequence[Delta], sizes: Mapping[str, int]) -> tuple[Delta, list[int]]:
        """All deltas in one, the ranks of one after those of the other, and how many belong to each.

        sizes: map -> o, of the maps to stack, of any widths; others stay out. The product of a map's factors
        is the sum of the deltas. A delta has the same number of ranks in all maps, zeros where it needs
        fewer, so that whoever draws can tell them from the others'.
        """
        ranks = [
            max((factors.low_rank()[1].shape[0] for factors in delta.only(sizes).values()), default=0)
            for delta in deltas
        ]
        maps: dict[str, Factors] = {}
        shared: dict[str, Hashable] = {}
        joined: dict[Hashable, Tensor] = {}
        for name, o in sizes.items():
            present = [delta.get(name) for delta in deltas]
            widths = [factors.shape[1] for factors in present if factors is not None]
            if not widths:
                continue
            pairs = [
                (torch.zeros(o, 0), torch.zeros(0, widths[0])) if factors is None else factors.low_rank()
                for factors in present
            ]
            key = (widths[0], *(_whose(delta, name) for delta in deltas))
            if key not in joined:
                padded = [
                    F.pad(pair[1], (0, 0, 0, r - len(pair[1]))) for pair, r in zip(pairs, ranks, strict=True)
                ]
                joined[key] = torch.cat(padded)
            ups = [F.pad(up, (0, r - up.shape[1])) for (up, _), r in zip(pairs, ranks, strict=True)]
            maps[name], shared[name] = Factors(torch.cat(ups, dim=1), joined[key]), key
        return cls(maps, shared), ranks


def _whose(delta: Delta, name: str) -> Hashable:
    """A key for the down of a map: None where there is no map, "identity" beside a full matrix."""
    return delta.shared.get(name, "identity") if name in delta else None


def _digest(tensor: Tensor) -> Hashable:
    """A key that is equal for tensors of equal shape, precision and value."""
    held = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return tuple(tensor.shape), str(tensor.dtype), hashlib.blake2b(held.tobytes(), digest_size=20).digest()
