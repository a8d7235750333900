"""What language models as text encoders have in common: a prompt stands within a chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Callable[[str], Sequence[dict[str, Any]]]

_PLACE = "PROMPT"


def chat_template(
    tokenizer: PreTrainedTokenizerBase, messages: Messages | None = None, **options: bool
) -> tuple[str, str]:
    """What a tokenizer's chat template writes before and after a prompt; options: of the template.

    messages: a function that gives the chat of a prompt; None: the prompt is all that the user says.
    """
    chat = messages(_PLACE) if messages else [{"role": "user", "content": _PLACE}]
    options = {"add_generation_prompt": True} | options
    before, _, after = tokenizer.apply_chat_template(chat, tokenize=False, **options).partition(_PLACE)
    return before, after
