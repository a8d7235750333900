"""Concepts folded into a whole pipeline, as a diffusers folder or as one checkpoint file.

Weights are the base's plus the delta: what keys, values and text encoders add is the same for every prompt,
and is exact. Tokens are words of the tokenizers. What acts only where a prompt says a concept's words cannot
do so in plain weights, and acts on every picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from conceptkit.base.added_tokens import LEGACY_EOS, added_token, lend, names_of, reads_table
from conceptkit.base.module_walk import named_modules, submodule
from conceptkit.base.pipeline import Base, check_fits
from conceptkit.base.text_features import encoders
from conceptkit.base.tokenizer_copy import twin_of
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import rank_gates
from conceptkit.errors import BaseMismatch
from conceptkit.formats.diffusers import folded
from conceptkit.formats.original_layout import checkpoint
from conceptkit.formats.provenance import provenance
from conceptkit.formats.textual_inversion import embedding, token_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALWAYS = (
    "It acts on every picture: those whose prompts say none of its words lean a little this way too. "
    "conceptkit lets that part of it act only where the words are."
)


def write_pipeline(concept: Concept, with_names: bool, base: Base, folder: Path) -> None:
    """A folder that `DiffusionPipeline.from_pretrained` opens, with a README.

    Raises BaseMismatch when the base is none that the concept fits.
    """
    check_fits(concept.base, base, concept.name, concept.base_name)
    concept = folded(concept)
    with ExitStack() as undo:
        for part in (base.pipe, *base.pipe.components.values()):
            if "_internal_dict" in getattr(part, "__dict__", {}):  # saving writes its version into it
                kept = type(part._internal_dict)(part._internal_dict)
                undo.callback(setattr, part, "_internal_dict", kept)
            elif hasattr(config := getattr(part, "config", None), "to_dict"):
                undo.callback(_restore, config, dict(vars(config)))
        undo.enter_context(_with_delta(base.pipe, concept))
        undo.enter_context(_with_tokens(base.pipe, concept))
        base.pipe.save_pretrained(folder)
    (folder / "README.md").write_text(_readme(concept), encoding="utf-8")


def write_checkpoint(concept: Concept, with_names: bool, base: Base, folder: Path) -> None:
    """One .safetensors in the original layout of Stable Diffusion 1, 2 and SDXL, embeddings, and a note.

    Raises BaseMismatch when the base is none that the concept fits, ConceptError for other families.
    """
    check_fits(concept.base, base, concept.name, concept.base_name)
    concept = folded(concept)
    with _with_delta(base.pipe, concept):
        tensors = checkpoint(base.pipe)
        file = folder / f"{concept.name}.safetensors"
        save_file(tensors, file, {"conceptkit": provenance(concept, with_names)})
    for token, rows in sorted(concept.tokens.items()):
        place = folder / "embeddings" / token_file(token)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(embedding(concept, rows, with_names))
    typed = " and ".join(f"`{text}`" for text in concept.words.values()) or "any prompt"
    always = f"{ALWAYS}\n" if acts_always(concept) else ""
    (folder / f"{concept.name}.txt").write_text(
        "Put it: where your program has its checkpoints, and embeddings where it has those.\n"
        f"Type: {typed}, as your program writes embeddings.\n{always}",
        encoding="utf-8",
    )


def _restore(config: Any, before: dict[str, Any]) -> None:
    vars(config).clear()
    vars(config).update(before)


def acts_always(concept: Concept) -> bool:
    """Whether a part of a concept that is for its own words alone acts on every picture in plain weights."""
    return any(gate.words is not None for gate in rank_gates(concept))


@contextmanager
def _with_delta(pipe: DiffusionPipeline, concept: Concept) -> Iterator[None]:
    """Inside of the block the weights are the base's plus the delta; afterwards the base's own again."""
    with ExitStack() as undo:
        for place, delta in concept.delta.by_component().items():
            owner = getattr(pipe, place)
            for name, factors in delta.items():
                module: Any = submodule(owner, name)
                if not isinstance(module, nn.Linear | nn.Conv2d):
                    raise BaseMismatch(
                        f"The map {name} of this base is a {type(module).__name__}, into which nothing is "
                        "folded; take adapters off it first, or use the base itself"
                    )
                weight = module.weight
                undo.callback(setattr, weight, "data", weight.data)
                added = factors.map(lambda factor: factor.float()).dense().view(weight.shape)
                weight.data = (weight.data.float() + added.to(weight.device)).to(weight.dtype)
        yield


@contextmanager
def _with_tokens(pipe: DiffusionPipeline, concept: Concept) -> Iterator[None]:
    """Inside of the block tokenizers and token tables have the concept's tokens, as plain parts of theirs."""
    sizes = {token: len(rows[0]) for token, rows in concept.tokens.items()}
    names = names_of(sizes)
    with ExitStack() as undo:
        for i, (tokenizer, encoder) in enumerate(encoders(pipe)) if names else ():
            wider = twin_of(tokenizer)
            wider.add_tokens([added_token(name, sizes, tokenizer) for name in names])
            lend(undo, wider, tokenizer)
            rows = torch.cat([concept.tokens[token][i] for token in concept.tokens])
            ids = tokenizer.convert_tokens_to_ids(names)
            _grow(undo, encoder, max(ids) + 1)
            table = encoder.get_input_embeddings().weight
            table.data[ids] = rows.to(table)
            if encoder.config.__dict__.get("eos_token_id") == LEGACY_EOS:
                # Such encoders pool at the largest id, which a new token would be.
                undo.callback(setattr, encoder.config, "eos_token_id", LEGACY_EOS)
                encoder.config.eos_token_id = tokenizer.eos_token_id
        yield


def _grow(undo: ExitStack, encoder: Any, size: int) -> None:
    """Give an encoder a token table of its own, with at least so many rows."""
    table = encoder.get_input_embeddings()
    places = [
        (path, module)
        for path, module in named_modules(encoder, leaves=nn.Embedding, repeated=True)
        if isinstance(module, nn.Embedding) and reads_table(module, table)
    ]
    config = encoder.config.get_text_config()

    def restore(rows: int = config.vocab_size) -> None:
        for path, module in places:
            parent, _, child = path.rpartition(".")
            setattr(encoder.get_submodule(parent), child, module)
        config.vocab_size = rows

    undo.callback(restore)
    n, d = table.weight.shape
    like = {"dtype": table.weight.dtype, "device": table.weight.device}
    wider = nn.Embedding(max(n, size), d, table.padding_idx, **like)
    wider.weight.requires_grad_(False)
    wider.weight.data[:n] = table.weight.data
    for path, _ in places:
        parent, _, child = path.rpartition(".")
        setattr(encoder.get_submodule(parent), child, wider)
    config.vocab_size = max(n, size)


def _readme(concept: Concept) -> str:
    typed = " and ".join(f"`{text}`" for text in concept.words.values()) or "any prompt"
    example = " and ".join(concept.words.values()) or "anything"
    always = f"\n{ALWAYS}\n" if acts_always(concept) else ""
    return f"""# {concept.name}

A whole pipeline with {concept.name} in its weights. In a prompt type {typed}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("FOLDER")
pipe("a photo of {example}").images[0].save("{concept.name}.png")
```

Put this folder for FOLDER.
{always}"""
