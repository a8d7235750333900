"""What a file of another program is on a base: a delta, tokens, and whatever could not be kept as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from conceptkit.concepts.delta import Delta, Factors
from conceptkit.errors import BadBlob, BaseMismatch, NoEffect
from conceptkit.formats import adapter_math
from conceptkit.formats.lora_modules import split, without_padding
from conceptkit.formats.module_index import ModuleIndex
from conceptkit.formats.module_keys import IGNORED, T5, grouped, module_of, token_of
from conceptkit.formats.module_names import TITLES
from conceptkit.formats.tensor_files import TensorFile
from conceptkit.registry.library.shapes import family_of_shapes

LARGEST = float(torch.finfo(torch.float16).max)
SHOWN = 5
"""Keys that an error lists."""


@dataclass(frozen=True, eq=False)
class Read:
    """kinds: what the modules are. delta, tokens: as of a concept; a token "" has no name in the file.

    kernels: of the delta's convolutions. notices: sentences for the user.
    """

    kinds: tuple[str, ...]
    delta: Delta
    tokens: Mapping[str, tuple[Tensor, ...]]
    kernels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def interpret(file: TensorFile, index: ModuleIndex, base_name: str, widths: Sequence[int]) -> Read:
    """All of a file on a base. widths: of the vectors of each text encoder.

    Raises BadBlob when a key or a shape cannot be understood, BaseMismatch when the file is for another
    family, NoEffect when nothing would change.
    """
    tokens, rest, notices = _tokens(file, widths)
    keys = {key: about for key in rest if (about := module_of(key)) is not None}
    _refuse(file, [key for key in rest if key not in keys], "are none that a concept can hold")
    modules = grouped(keys)
    known = {key for roles in modules.values() for key in roles.values()}
    _refuse(file, [key for key in keys if key not in known], "say the same of a map as other keys")
    unknown = [next(iter(roles.values())) for at, roles in modules.items() if not index.find(*at)]
    if unknown:
        _refuse_family(file, index, base_name)
    _refuse(file, unknown, f"name no map of {base_name}")
    maps: dict[str, Factors] = {}
    kinds: dict[str, None] = {}
    for at, roles in modules.items():
        kind, found = _module(file, index, index.find(*at), roles, base_name)
        kinds[kind] = None
        for name, factors in found.items():
            if name in maps:
                raise BadBlob(f"{file.path} changes {name} under two names; ask for one of the files in it")
            maps[name] = factors
    _check_sizes(file, maps, tokens)
    maps = {name: factors for name, factors in maps.items() if all(bool(f.any()) for f in factors)}
    if not maps and not tokens:
        raise NoEffect(f"{file.path} would change nothing: all that it adds is zero; ask for it again")
    kernels = {name: size for name in maps if (size := index.kernel(name)) is not None}
    told = tuple(kinds) + (("embedding",) if tokens else ())
    return Read(told, Delta(maps), tokens, kernels, tuple(notices))


def _module(
    file: TensorFile, index: ModuleIndex, names: tuple[str, ...], roles: Mapping[str, str], base_name: str
) -> tuple[str, dict[str, Factors]]:
    """(kind, what is added to each map of the module)."""
    held = {role: file.tensors[key] for role, key in roles.items()}
    held |= _peft_scale(file, held, names[0])
    _same_bias(file, index, names, held, roles)
    kind = adapter_math.kind_of(set(held) - {"bias"})
    if kind is None:
        raise _refusal(file, list(roles.values()), "are no whole module of a kind that is known")
    expand = adapter_math.KINDS[kind][1]
    key = next(iter(roles.values()))
    try:
        factors = expand(held)
        shapes = [(w.shape[0], w.flatten(1).shape[1]) for w in map(index.weight, names)]
        fits = factors.shape == (sum(o for o, _ in shapes), shapes[0][1])
    except (RuntimeError, IndexError, ValueError) as error:
        raise BadBlob(
            f"The tensors of {key[:120]!r} in {file.path} do not fit together; fetch it again"
        ) from error
    if not fits:
        _refuse_family(file, index, base_name)
        raise BaseMismatch(
            f"{key[:120]!r} in {file.path} is for a map {factors.shape} and {names[0]} of {base_name} is "
            f"{shapes[0]}; name the base that it was made for with --base"
        )
    if "magnitude" in held or kind == "whole matrix":
        weight = torch.cat([index.weight(name) for name in names])
        if kind == "whole matrix":
            factors = adapter_math.low_rank_where_exact(factors.dense() - weight.flatten(1))
        else:
            try:
                factors = adapter_math.decomposed(factors, weight, held["magnitude"])
            except BadBlob as error:
                raise BadBlob(f"{key[:120]!r} in {file.path}: {error}") from error
    if len(names) == 1:
        return kind, {names[0]: without_padding(factors)}
    pair = factors.low_rank(narrow=True)
    parts = split(pair, [o for o, _ in shapes])
    return kind, {name: part for name, part in zip(names, parts, strict=True) if part is not None}


def _peft_scale(file: TensorFile, held: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """alpha, where a PEFT folder's configuration says it; patterns are those of PEFT."""
    if "r" not in file.config or "down" not in held or "alpha" in held:
        return {}
    config, rank = file.config, held["down"].shape[0]
    alpha = float(config.get("lora_alpha") or rank)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        alpha = float(own) if name == pattern or name.endswith(f".{pattern}") else alpha
    return {"alpha": torch.tensor(alpha * rank**0.5 if config.get("use_rslora") else alpha)}


def _same_bias(
    file: TensorFile,
    index: ModuleIndex,
    names: tuple[str, ...],
    held: Mapping[str, Tensor],
    roles: Mapping[str, str],
) -> None:
    if "bias" not in held:
        return
    own = index.maps[names[0]].bias
    if (
        own is None
        or own.shape != held["bias"].shape
        or not torch.allclose(held["bias"], own.detach().float().cpu(), atol=1e-6)
    ):
        raise _refusal(file, [roles["bias"]], "change a bias, which no concept does")


def _tokens(
    file: TensorFile, widths: Sequence[int]
) -> tuple[dict[str, tuple[Tensor, ...]], list[str], list[str]]:
    """The tokens of a file, the other keys, and sentences."""
    held: dict[str, dict[int, Tensor]] = {}
    rest: list[str] = []
    notices: list[str] = []
    alone = [key for key in file.tensors if not IGNORED.fullmatch(key)]
    for key in alone:
        found, tensor = token_of(key), file.tensors[key]
        if found is None and len(alone) == 1 and module_of(key) is None:
            found = (key, 0)
        if found is None:
            rest.append(key)
            continue
        rows = tensor if tensor.ndim == 2 else tensor.reshape(1, -1)
        if key.startswith("params/new_concept_embedding/") and len(rows) > 1:
            rows = rows.mean(dim=0, keepdim=True)
            notices.append(
                f"{found[0]} has an embedding for each of {len(tensor)} layers; a concept has one, their mean"
            )
        held.setdefault(found[0], {})[found[1]] = rows
    for token, parts in held.items():
        given = [parts[i].shape[1] for i in sorted(parts)]
        numbers = sorted(parts)
        whole = numbers in (list(range(len(parts))), [0, T5])
        if not whole or given != list(widths):
            raise BaseMismatch(
                f"The embedding {token or file.path.name} has vectors of {_list(given)} values, and the text "
                f"encoders of the base read {_list(widths)}; name the base that it was made for with --base"
            )
    return {token: tuple(parts[i] for i in sorted(parts)) for token, parts in held.items()}, rest, notices


def _check_sizes(
    file: TensorFile, maps: Mapping[str, Factors], tokens: Mapping[str, tuple[Tensor, ...]]
) -> None:
    """Raises BadBlob where numbers are beyond what half precision holds: they are damage, and no weights."""
    for name, tensors in [*((name, f.tensors) for name, f in maps.items()), *tokens.items()]:
        largest = max(float(tensor.abs().max()) for tensor in tensors)
        if not largest <= LARGEST:
            raise BadBlob(
                f"{file.path} adds numbers up to {largest:.1g} to {name}, no weights; fetch it again"
            )


def _list(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers)) or "no"


def _refuse_family(file: TensorFile, index: ModuleIndex, base_name: str) -> None:
    """Raises BaseMismatch when the file is for a family that is known, and another."""
    shapes = {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}
    family = family_of_shapes(shapes)
    if family is not None and family != index.family:
        raise BaseMismatch(
            f"{file.path} is for {TITLES[family]}, and {base_name} is of the family {TITLES[index.family]}; "
            f"name a base of {TITLES[family]} with --base"
        )


def _refuse(file: TensorFile, keys: Sequence[str], why: str) -> None:
    if keys:
        raise _refusal(file, keys, why)


def _refusal(file: TensorFile, keys: Sequence[str], why: str) -> BadBlob:
    shown = ", ".join(key[:120] for key in keys[:SHOWN])
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return BadBlob(
        f"{len(keys)} of the {len(file.tensors)} keys in {file.path} {why}: {shown}{more}; nothing of it was "
        "taken in"
    )
