"""Muon for matrices and convolutions, AdamW for everything else, behind the face of one optimiser.

Early in training orthogonalised momentum reached a lower loss than AdamW in the same minutes: see the
model card.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NARROWEST = 16
"""Matrices with fewer rows or columns, such as the last convolution, have too few directions to even out."""


def matrix(tensor: Tensor) -> Tensor:
    """A view (out, in) of a matrix, or (out, height * width * in) of a convolution in channels_last."""
    return tensor.permute(0, 2, 3, 1).flatten(1) if tensor.ndim == 4 else tensor


class Muon:
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) with steps of AdamW's size (2502.16982).

    Convolutions are taken as matrices and must be in channels_last, so that the view shares their memory.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.01) -> None:
        every = list(parameters)
        self.wide = [p for p in every if p.ndim >= 2 and min(matrix(p).shape) >= NARROWEST]
        self.views = [nn.Parameter(matrix(p.data)) for p in self.wide]
        for view, p in zip(self.views, self.wide, strict=True):
            if view.data_ptr() != p.data_ptr():
                raise ValueError(
                    f"a weight of shape {tuple(p.shape)} is not in channels_last: convert the model"
                )
        taken = {id(p) for p in self.wide}
        self.matrices = torch.optim.Muon(
            self.views, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.others = torch.optim.AdamW(
            [p for p in every if id(p) not in taken],
            lr=lr,
            weight_decay=weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.matrices.param_groups, *self.others.param_groups]

    def zero_grad(self) -> None:
        for p in self.wide:
            p.grad = None
        self.others.zero_grad()

    def step(self) -> None:
        for view, p in zip(self.views, self.wide, strict=True):
            view.grad = None if p.grad is None else matrix(p.grad)
        self.matrices.step()
        self.others.step()

    def state_dict(self) -> dict[str, Any]:
        return {"matrices": self.matrices.state_dict(), "others": self.others.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.matrices.load_state_dict(state["matrices"])
        self.others.load_state_dict(state["others"])
