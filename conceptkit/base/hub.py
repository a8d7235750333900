"""What the hub says when it does not hand out a model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from conceptkit.errors import BadBase

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hub_error(name: str, error: BaseException) -> BadBase | None:
    """A sentence for a model that is gated, private or not there; None where it is about something else."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    causes = list(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return BadBase(
            f"{name} is gated: agree to its terms at https://huggingface.co/{name}, log in with "
            "`hf auth login`, and try again"
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return BadBase(
            f"The hub has no model {name!r}, or it is private; check the id, or log in with `hf auth login`"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised after."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
