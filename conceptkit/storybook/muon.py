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


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix (out, in), its singular values brought near 1 by quintic Newton-Schulz steps in float32.

    torch.optim.Muon iterates in bfloat16, which a CPU without AVX-512 multiplies hundreds of times slower.
    """
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


A, B, C = 3.4445, -4.775, 2.0315
"""Coefficients of Jordan 2024: steepest at zero, singular values end between about 0.5 and 1.5."""


class Matrices(torch.optim.Optimizer):
    """Steps along the orthogonalised Nesterov momentum of matrices."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - momentum)
                update = orthogonal(p.grad.lerp(state["momentum"], momentum))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * 0.2 * max(p.shape) ** 0.5)


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
        self.matrices = Matrices(self.views, lr, weight_decay)
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
