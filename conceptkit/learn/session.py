"""What a run of learning has around it: the base, the registry, who follows it, and the other processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conceptkit.base.pipeline import Base
from conceptkit.learn.distributed import DistributedContext, current

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what is being done."""


def quiet(done: int, total: int, text: str = "") -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True, eq=False)
class Session:
    """registry: where class images and statistics of the base are kept, or None. distributed: by default the
    processes that this one was started among."""

    base: Base
    registry: Registry | None = None
    progress: Progress = quiet
    distributed: DistributedContext = field(default_factory=current)
