"""Names as words: `encode_prompt` writes concepts out before it reads, and tells those who listen."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from conceptkit.base.added_tokens import Tokens
from conceptkit.base.architectures import architecture_of, denoiser_of
from conceptkit.base.text_features import encoders
from conceptkit.concepts import prompt_rewriting
from conceptkit.errors import ConceptError
from conceptkit.inference.confined_drawing import ConfinedDrawing
from conceptkit.inference.confinement import PROMPTS, written
from conceptkit.inference.method_override import override
from conceptkit.inference.multidiffusion import Windows
from conceptkit.inference.per_concept_encoding import PerConceptEncoding
from conceptkit.inference.token_owners import TokenOwners, both_halves

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def hook_encode_prompt(
    attachment: Any,
    words: Mapping[str, str],
    tokens: Tokens | None,
    reading: TokenOwners | None,
    windows: Windows | None,
    apart: PerConceptEncoding | None,
    drawing: ConfinedDrawing | None = None,
) -> Callable[[], None]:
    """Make the pipeline of an attachment read names as the `words` they stand for; gives the way back."""
    original = attachment.pipe.encode_prompt
    signature = inspect.signature(type(attachment.pipe).encode_prompt)
    here, parts = _Reads("negative_prompt" not in signature.parameters), _parts(attachment.pipe)

    @functools.wraps(original)
    def encode_prompt(*args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        here.reading = True
        try:
            return encode(*args, **kwargs)
        finally:
            here.reading = False

    def encode(*args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        if tokens and not tokens.intact:
            raise ConceptError(
                "Another token table was loaded over the attached concepts; detach, and attach last"
            )
        _check_parts(attachment.pipe, parts, words)
        bound = signature.bind(attachment.pipe, *args, **kwargs)
        given = {name: bound.arguments[name] for name in PROMPTS if name in bound.arguments}
        stage = drawing.confinement.stage if drawing else None
        if drawing and stage and given.get("prompt"):
            return _in_stage(original, attachment, drawing, bound.arguments, here.reads_negative())
        _warn_unmentioned(None if here.reads_negative() else given.get("prompt"), words)
        spelt = {
            name: written(attachment.pipe, prompt_rewriting.replace(text, words))
            for name, text in given.items()
        }
        bound.arguments.update(spelt)
        if bound.arguments.get("clean_caption"):  # which takes tokens for markup
            bound.arguments["clean_caption"] = False
        encoded = original(*bound.args[1:], **bound.kwargs)
        _warn_cut_off(given.get("prompt"), attachment, encoded)
        if apart:
            encoded = apart.encode(original, bound.arguments, encoded)
        if reading:
            halves = architecture_of(attachment.pipe).halves(encoded)
            reading.note(halves, both_halves(spelt, halves))
        if windows:
            windows.encode(original, bound, encoded, note_window)
        return encoded

    def note_window(rows: Tensor, said: Sequence[str]) -> None:
        if reading:
            reading.note_more(rows, said)

    def read_elsewhere(*_: Any) -> None:
        if not here.reading:
            if windows:
                windows.forget()
            _warn_elsewhere(words)

    encode_prompt.attachment = attachment  # type: ignore[attr-defined]
    with ExitStack() as undo:
        undo.callback(here.watch(denoiser_of(attachment.pipe)))
        if words:
            first = encoders(attachment.pipe)[0][1]
            undo.callback(first.register_forward_pre_hook(read_elsewhere).remove)
        undo.callback(override(attachment.pipe, "encode_prompt", encode_prompt))
        return undo.pop_all().close


class _Reads(threading.local):
    """What this thread reads. `alone`: negative prompts are read by a call of their own, after the prompt."""

    def __init__(self, alone: bool) -> None:
        self.alone, self.reading, self.read = alone, False, False

    def reads_negative(self) -> bool:
        """Whether a prompt has been read since the denoiser was called last."""
        before, self.read = self.read, True
        return before and self.alone

    def watch(self, denoiser: nn.Module) -> Callable[[], None]:
        """After a call of the denoiser the next is a prompt again; gives the way back."""

        def forget(*_: Any) -> None:
            self.read = False

        return denoiser.register_forward_pre_hook(forget).remove if self.alone else lambda: None


def _in_stage(
    original: Callable[..., Any],
    attachment: Any,
    drawing: ConfinedDrawing,
    given: dict[str, Any],
    negative: bool,
) -> tuple[Tensor | None, ...]:
    """What a stage of a confined drawing reads; what is cut off is told once, at the layout."""
    stage = drawing.confinement.stage
    assert stage is not None
    laying_out = stage.layout is None
    encoded = drawing.confinement.encode(original, given, stage, negative)
    if laying_out and not negative:
        _warn_cut_off(given.get("prompt"), attachment, encoded)
    return encoded


def _parts(pipe: DiffusionPipeline) -> dict[str, Any]:
    """What carries concepts on a pipeline, whether compiled or not."""
    names = [f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    parts = {name: getattr(pipe, name, None) for name in (architecture_of(pipe).denoiser, *names)}
    return {name: getattr(part, "_orig_mod", part) for name, part in parts.items()}


def _check_parts(pipe: DiffusionPipeline, parts: Mapping[str, Any], words: Mapping[str, str]) -> None:
    """Raises ConceptError when a part that carries concepts was replaced; compiling one is no matter."""
    for name, part in _parts(pipe).items():
        if part is not None and part is not parts[name]:
            raise ConceptError(
                f"The {name} of this pipeline was replaced since {' and '.join(words) or 'concepts'} came "
                "onto it; detach, and attach again"
            )


def _warn_elsewhere(words: Mapping[str, str]) -> None:
    """Who else calls the text encoder, such as a pipeline of the same parts, knows tokens and no names."""
    warnings.warn(
        f"The text encoder that carries {', '.join(words)} reads for another pipeline than the one they are "
        f"attached to, where names are no words; write {', '.join(words.values())} there, or attach to it",
        stacklevel=3,
    )


def _warn_unmentioned(prompt: str | list[str] | None, words: Mapping[str, str]) -> None:
    for text in [prompt] if isinstance(prompt, str) else prompt or []:
        if text and words and not prompt_rewriting.mentioned(text, words):
            names = ", ".join(words)
            warnings.warn(
                f"The prompt {text!r} mentions none of the attached concepts: {names}", stacklevel=5
            )


def _warn_cut_off(prompt: str | list[str] | None, attachment: Any, encoded: Sequence[Any]) -> None:
    """Of names behind the last position; pipelines that read on in pieces give more features."""
    length = encoders(attachment.pipe)[0][0].model_max_length
    if encoded[0] is None or len(encoded[0][0]) > length:
        return
    for text in [prompt] if isinstance(prompt, str) else prompt or []:
        for sentence in attachment.cut_off(text):
            warnings.warn(sentence, stacklevel=5)
