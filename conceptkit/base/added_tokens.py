"""New tokens on a pipeline's text encoders, and off again without a trace.

The base's vocabulary and token table are never edited. A twin of the tokenizer learns the tokens and lends
its state to the tokenizer, so that all pipelines that share it read them, and none of them does afterwards. A
table over the base's own memory has the new rows behind it, as a parameter of their own: training them cannot
move the rest, and taking the tokens off puts the originals back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken
from torch import Tensor, nn

from conceptkit.base.architectures import architecture_of
from conceptkit.base.module_walk import named_modules
from conceptkit.base.text_features import encoders
from conceptkit.base.tokenizer_copy import knows, twin_of
from conceptkit.errors import BaseMismatch, ConceptError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedTokenizerBase


LEGACY_EOS = 2


class WiderTable(nn.Embedding):
    """A token table whose ids `first`, `first + 1`, ... read new `rows` (n, d), the others the base's weight.

    The weight shares the base's memory but is a parameter of its own: what others do to it meanwhile, such as
    growing it for a textual inversion, goes away with the tokens.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor, first: int) -> None:
        n, d = table.weight.shape
        super().__init__(n, d, padding_idx=table.padding_idx, _weight=table.weight.detach())
        self.weight.requires_grad_(table.weight.requires_grad)
        self.rows = nn.Parameter(rows.detach().to(table.weight, copy=True), requires_grad=False)
        self.first = first
        self.scale = getattr(table, "embed_scale", None)  # of Gemma's tables

    def forward(self, ids: Tensor) -> Tensor:
        """(..., d) of ids (...)."""
        new = (ids >= self.first) & (ids < self.first + len(self.rows))
        known = super().forward(ids.where(~new, 0))
        learned = F.embedding((ids - self.first).where(new, 0), self.rows).to(known.dtype)
        found = torch.where(new.unsqueeze(-1), learned, known)
        return found if self.scale is None else found * self.scale.to(found.dtype)


@dataclass
class Tokens:
    """Tokens that live on a pipeline: names -> vectors each; one table per text encoder."""

    sizes: dict[str, int]
    tables: tuple[WiderTable, ...]
    _owners: tuple[Any, ...]
    _undo: ExitStack

    @property
    def rows(self) -> tuple[nn.Parameter, ...]:
        """Per text encoder the new rows (n, d), frozen until someone asks for their gradient."""
        return tuple(table.rows for table in self.tables)

    @property
    def intact(self) -> bool:
        """False when something else has replaced a token table since."""
        return all(o.get_input_embeddings() is t for o, t in zip(self._owners, self.tables, strict=True))

    def read(self) -> dict[str, tuple[Tensor, ...]]:
        """A copy of the rows as they are now, on the CPU: token -> per encoder (k, d)."""
        parts = [rows.detach().to("cpu", copy=True).split(list(self.sizes.values())) for rows in self.rows]
        return dict(zip(self.sizes, zip(*parts, strict=True), strict=True))

    def remove(self) -> None:
        """Put tokenizers and tables back as they were; a second call does nothing."""
        self._undo.close()

    def __enter__(self) -> Tokens:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def add_tokens(pipe: DiffusionPipeline, tokens: Mapping[str, tuple[Tensor, ...]]) -> Tokens:
    """Add tokens to a pipeline: name -> per text encoder its rows (k, d).

    A token of k > 1 vectors occupies "<x>", "<x>_1", ..., the names by which diffusers' own `encode_prompt`
    spells "<x>" out. Raises ConceptError when a name is taken, BaseMismatch when rows do not fit.
    """
    pairs = encoders(pipe)
    owners = tuple(encoder for _, encoder in pairs)
    sizes = {token: _check_rows(token, rows, owners) for token, rows in tokens.items()}
    names = names_of(sizes)
    for name in names:
        if name != name.lower() and architecture_of(pipe).lower_case:
            raise ConceptError(
                f"A {type(pipe).__name__} reads prompts in lower case, where {name} is never found; give "
                "it a name in lower case"
            )
        if any(knows(tokenizer, name) for tokenizer, _ in pairs) or names.count(name) > 1:
            raise ConceptError(
                f"The pipeline already has a token {name}; detach or unload what brought it first"
            )
    with ExitStack() as undo:
        tables = []
        for i, (tokenizer, encoder) in enumerate(pairs):
            wider = twin_of(tokenizer)
            wider.add_tokens([added_token(name, sizes, tokenizer) for name in names])
            lend(undo, wider, tokenizer)
            rows = torch.cat([tokens[token][i] for token in sizes])
            tables.append(_widen(undo, encoder, rows, first=wider.convert_tokens_to_ids(names[0])))
            _read_true_eos(undo, encoder, tokenizer.eos_token_id)
        return Tokens(sizes, tuple(tables), owners, undo.pop_all())


def added_token(name: str, sizes: Mapping[str, int], tokenizer: PreTrainedTokenizerBase) -> AddedToken:
    """A token that has the space before it, where words of this vocabulary have: T5's, language models'.

    Otherwise these would read a space and the token, two where the words of the base are one. A token of
    several vectors is found by its bare name, for diffusers to spell it out.
    """
    spaced = tokenizer.tokenize("a a")[-1].startswith(("▁", "Ġ"))
    return AddedToken(name, normalized=False, special=False, lstrip=spaced and sizes.get(name) == 1)


def names_of(sizes: Mapping[str, int]) -> list[str]:
    """What tokens of so many vectors each are called, vector by vector."""
    return [name for token, k in sizes.items() for name in (token, *(f"{token}_{i}" for i in range(1, k)))]


def _check_rows(token: str, rows: tuple[Tensor, ...], text_encoders: tuple[Any, ...]) -> int:
    """Number of vectors of the token."""
    widths = [encoder.get_input_embeddings().weight.shape[1] for encoder in text_encoders]
    if [part.shape[1] for part in rows] != widths:
        found = ", ".join(str(part.shape[1]) for part in rows)
        raise BaseMismatch(
            f"{token} is for text encoders of width {found}, not {widths}; use the base it was learned on"
        )
    return len(rows[0])


def lend(undo: ExitStack, wider: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer be another one of its kind until it is undone."""
    kept = dict(vars(tokenizer))

    def restore() -> None:
        vars(tokenizer).update(kept)
        for name in vars(tokenizer).keys() - kept.keys():
            del vars(tokenizer)[name]

    undo.callback(restore)
    vars(tokenizer).update(vars(wider))


def _widen(undo: ExitStack, encoder: Any, rows: Tensor, first: int) -> WiderTable:
    table = encoder.get_input_embeddings()
    wider = WiderTable(table, rows, first)
    # T5 has its table in two places, which need not be one module.
    before = {
        path: module
        for path, module in named_modules(encoder, leaves=nn.Embedding, repeated=True)
        if isinstance(module, nn.Embedding) and reads_table(module, table)
    }
    for path in before:
        _put(encoder, path, wider)

    def restore() -> None:
        # The pipeline may have moved to another device or precision since.
        moved = (
            wider.weight.data if wider.weight.shape == table.weight.shape else table.weight.to(wider.weight)
        )
        if not moved.is_meta:  # its values are put away, and the table still has them
            table.weight.data = moved.detach()
        for path, module in before.items():
            _put(encoder, path, module)

    undo.callback(restore)
    return wider


def _put(encoder: Any, path: str, module: nn.Module) -> None:
    """Let a module stand at a path of another."""
    parent, _, child = path.rpartition(".")
    setattr(encoder.get_submodule(parent), child, module)


def reads_table(module: nn.Module, table: nn.Embedding) -> bool:
    """Whether a module is that table, or another with the same weight."""
    return module is table or (isinstance(module, nn.Embedding) and module.weight is table.weight)


def _read_true_eos(undo: ExitStack, encoder: nn.Module, eos: int) -> None:
    """Old CLIP configs pool at the largest id, which a new token would be; pool at the end of text."""
    for _, module in named_modules(encoder):
        if vars(module).get("eos_token_id") == LEGACY_EOS:
            _swap(undo, module, "eos_token_id", eos)


def _swap(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
