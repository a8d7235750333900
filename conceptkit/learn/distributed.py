"""The processes that learn together: one alone, or those that `accelerate launch` has started.

A batch is drawn whole, by the same dice, in every process; each takes its share of it, with losses that add
up to that of the whole, and the gradients are summed. So any number of processes learns the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class DistributedContext:
    """This process among `size`; `state` is accelerate's, None where a process is alone."""

    rank: int = 0
    size: int = 1
    state: Any = None

    @property
    def first(self) -> bool:
        """Whether this process speaks and stores for all."""
        return self.rank == 0

    @property
    def device(self) -> str | None:
        """Where this process computes, None where that is for the caller to say."""
        return None if self.state is None else str(self.state.device)

    def share(self, count: int, part: int, parts: int) -> Tensor:
        """Indices of the samples that are this process's, of part `part` of its `parts`."""
        return torch.arange(count)[self.rank * parts + part :: self.size * parts]

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over all processes, in place."""
        if self.size == 1:
            return
        from accelerate.utils import reduce

        for parameter in parameters:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(grad, "sum")

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size == 1:
            return value
        from accelerate.utils import reduce

        summed: Tensor = reduce(value.detach().clone(), "sum")
        return summed

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes ahead, so that the others find what it has stored."""
        if self.state is None:
            yield
        else:
            with self.state.main_process_first():
                yield


def current() -> DistributedContext:
    """The crew this process was started in."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return DistributedContext()
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    accelerator = getattr(torch, "accelerator", torch.cuda)  # torch before 2.6 has no such module
    # accelerate joins processes without an accelerator only where it is told that there is none
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not accelerator.is_available())
    return DistributedContext(state.process_index, state.num_processes, state)
