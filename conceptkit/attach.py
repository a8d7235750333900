"""Concepts living on a diffusers pipeline: their tokens, their delta, and their names as words in prompts."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from conceptkit import base, prompts
from conceptkit.concept import Concept, read
from conceptkit.errors import ConceptError, NoEffect
from conceptkit.kv_delta import ADAPTER, install, uninstall
from conceptkit.tokens import Tokens, add_tokens

if TYPE_CHECKING:
    from conceptkit.merge import Merge, Report
    from conceptkit.registry.store import Registry

PROMPTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")


@dataclass(eq=False)
class Attachment:
    """What is on the pipeline; `detach`, or leaving a `with` block, restores the pipeline bit for bit.

    concept: the one that was attached, or the merge of several. report: of that merge.
    notice: one sentence when the concept was learned on a near relative of this base.
    """

    pipe: Any
    concepts: tuple[str, ...]
    concept: Concept
    report: "Report | None"
    notice: str | None
    _undo: ExitStack

    def detach(self) -> None:
        """Take everything off; a second call does nothing."""
        self._undo.close()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def attach(
    pipe: Any,
    *concepts: "str | Concept | Merge",
    registry: "Registry | None" = None,
    how: str = "constrained",
) -> Attachment:
    """Put concepts on a pipeline, several of them composed in one call.

        with attach(pipe, "my_dog", "moongate"):
            pipe("my_dog in front of a moongate").images[0].save("both.png")

    Strings are names in the registry; `how` is the way of composing. Raises BaseMismatch on another base,
    NoEffect when nothing would change, ConceptError when the pipeline carries concepts already; whatever is
    raised, the pipeline is as it was.
    """
    if not concepts:
        raise ConceptError("There is nothing to attach; name at least one concept")
    if present := getattr(getattr(pipe, "encode_prompt", None), "attachment", None):
        carried = ", ".join(present.concepts)
        raise ConceptError(
            f"This pipeline already carries {carried}; detach first, or attach all in one call"
        )
    here = base.of(pipe)
    concept, report = _resolve(concepts, here, registry, how)
    notices = (
        base.check_fits(concept.base, here, concept.name, concept.base_name),
        *getattr(report, "notices", ()),
    )
    notice = "; ".join(text for text in notices if text) or None
    changes = any(all(factor.any() for factor in factors) for factors in concept.delta.values())
    if not changes and not concept.tokens:
        raise NoEffect(
            f"{concept.name} would change nothing: its delta is zero and it has no token; learn it again"
        )
    with ExitStack() as undo:
        tokens = undo.enter_context(add_tokens(pipe, concept.tokens)) if concept.tokens else None
        if changes:
            install(pipe.unet, concept.delta)
            undo.callback(uninstall, pipe.unet, ADAPTER)
        attachment = Attachment(pipe, tuple(concept.words), concept, report, notice, undo)
        undo.callback(_read_names(attachment, tokens))
        attachment._undo = undo.pop_all()
    if notice:
        warnings.warn(notice, stacklevel=2)
    return attachment


def _resolve(
    concepts: tuple[Any, ...], here: base.Base, registry: "Registry | None", how: str
) -> "tuple[Concept, Report | None]":
    """One concept as it is, several as their merge."""
    if len(concepts) > 1:
        from conceptkit.merge import compose

        merge = compose(*(getattr(c, "concept", c) for c in concepts), base=here, registry=registry, how=how)
        return merge.concept, merge.report
    (only,) = concepts
    if isinstance(only, str):
        from conceptkit.registry.store import Registry

        return read(registry or Registry(), only), None
    return getattr(only, "concept", only), getattr(only, "report", None)


def _read_names(attachment: Attachment, tokens: Tokens | None) -> Callable[[], None]:
    """Make the pipeline's `encode_prompt` read concept names; the way back is returned."""
    own = attachment.pipe.__dict__
    before = {name: own[name] for name in ("encode_prompt",) if name in own}
    original = attachment.pipe.encode_prompt
    signature = inspect.signature(type(attachment.pipe).encode_prompt)
    words = attachment.concept.words

    @functools.wraps(original)
    def encode_prompt(*args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        if tokens and not tokens.intact:
            raise ConceptError(
                "Another token table was loaded over the attached concepts; detach, and attach last"
            )
        bound = signature.bind(attachment.pipe, *args, **kwargs)
        given = {name: bound.arguments[name] for name in PROMPTS if name in bound.arguments}
        _warn_unmentioned(given.get("prompt"), words)
        bound.arguments.update({name: prompts.replace(text, words) for name, text in given.items()})
        return original(*bound.args[1:], **bound.kwargs)

    def restore() -> None:
        own.pop("encode_prompt", None)
        own.update(before)

    encode_prompt.attachment = attachment  # type: ignore[attr-defined]
    own["encode_prompt"] = encode_prompt
    return restore


def _warn_unmentioned(prompt: str | list[str] | None, words: Mapping[str, str]) -> None:
    for text in [prompt] if isinstance(prompt, str) else prompt or []:
        if words and not prompts.mentioned(text, words):
            names = ", ".join(words)
            warnings.warn(
                f"The prompt {text!r} mentions none of the attached concepts: {names}", stacklevel=3
            )
