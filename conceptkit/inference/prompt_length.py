"""Prompts that are longer than the text encoder reads: which concepts come after its last position."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from conceptkit.base.text_features import encoders, positions, spell, token_ids
from conceptkit.concepts import prompt_words

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SHOWN = 40
"""Characters of a prompt in a sentence."""


def cut_off(
    pipe: DiffusionPipeline, prompt: str, words: Mapping[str, str], parts: Collection[str] = ()
) -> list[str]:
    """A sentence for each concept that a prompt names, but only behind the last token that is read.

    words: name -> the text it stands for, as on the pipeline, which knows their tokens. parts: what is read
    in the prompt's place, such as a clause for each window.
    """
    tokenizer = encoders(pipe)[0][0]
    said = prompt_words.mentioned(prompt, words)
    read: set[str] = set()
    for part in parts or (prompt,) if said else ():
        ids = token_ids(pipe, [prompt_words.replace(part, words)])
        for name in said - read:
            tokens = prompt_words.TOKEN.findall(words[name]) or [words[name]]
            if all(positions(ids, spell(pipe, token)).any() for token in tokens):
                read.add(name)
    shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
    return [
        f"The encoder reads {tokenizer.model_max_length} tokens of a prompt, and in {shown!r} {name} comes "
        f"after them, unread: name {name} earlier, or shorten the prompt."
        for name in words
        if name in said - read
    ]
