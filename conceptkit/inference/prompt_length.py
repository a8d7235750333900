"""Prompts that are longer than the text encoder reads: which concepts come after its last position."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from conceptkit.base.architectures import architecture_of
from conceptkit.base.text_features import encoders, positions, spell, token_ids
from conceptkit.concepts import prompt_rewriting

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
    said = prompt_rewriting.mentioned(prompt, words)
    read: set[str] = set()
    for part in parts or (prompt,) if said else ():
        ids = token_ids(pipe, [prompt_rewriting.replace(part, words)])
        for name in said - read:
            tokens = prompt_rewriting.TOKEN.findall(words[name]) or [words[name]]
            if all(positions(ids, spell(pipe, token)).any() for token in tokens):
                read.add(name)
    shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
    return [
        f"The encoder reads {tokenizer.model_max_length} tokens of a prompt, and in {shown!r} {name} comes "
        f"after them, unread: name {name} earlier, or shorten the prompt."
        for name in words
        if name in said - read
    ]


def unread(pipe: DiffusionPipeline, prompt: str, words: Mapping[str, str], of: str = "prompt") -> list[str]:
    """A sentence for a prompt that goes on behind the last token that is read, with what is left out of it.

    words: as for `cut_off`. of: what a sentence calls it.
    """
    said = prompt.split()
    room = max(
        (segment for segment in architecture_of(pipe).segments(pipe) if segment.tokenizer is not None),
        key=lambda segment: segment.length,
    )

    def fits(count: int) -> bool:
        text = prompt_rewriting.replace(" ".join(said[:count]), words)
        if hasattr(pipe, "maybe_convert_prompt"):
            text = pipe.maybe_convert_prompt(text, room.tokenizer)
        return len(room.tokenizer(text, verbose=False).input_ids) <= room.length

    if fits(len(said)):
        return []
    first = bisect.bisect_left(range(len(said)), True, key=lambda count: not fits(count + 1))
    rest = " ".join(said[first:])
    shown = rest if len(rest) <= 2 * SHOWN else f"{rest[: 2 * SHOWN]}..."
    return [
        f"The encoder reads {room.length} tokens of a {of}, and leaves out {shown!r}: shorten the {of}, or "
        "begin with what matters."
    ]
