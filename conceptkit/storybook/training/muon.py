"""Muon for matrices and convolutions, AdamW for everything else, behind the face of one optimiser.

Early in training orthogonalised momentum reached a lower loss than AdamW in the same minutes: see the
model card.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit.base import devices

NARROWEST = 16
"""Matrices with fewer rows or columns, such as the last convolution, have too few directions to even out."""


def matrix(tensor: Tensor) -> Tensor:
    """A view (out, in) of a matrix, or (out, height * width * in) of a convolution in channels_last."""
    return tensor.permute(0, 2, 3, 1).flatten(1) if tensor.ndim == 4 else tensor


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices (..., out, in), their singular values brought near 1 by quintic Newton-Schulz steps.

    In bfloat16, as torch.optim.Muon iterates, where the processor multiplies it, else in float32, as a CPU
    without AVX-512 takes hundreds of times longer.
    """
    upright = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if upright else matrices.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    if x.device.type != "cpu" or devices.has_bfloat16():
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x if upright else x.mT).to(matrices.dtype)


A, B, C = 3.4445, -4.775, 2.0315
"""Coefficients of Jordan 2024: steepest at zero, singular values end between about 0.5 and 1.5."""


class Matrices(torch.optim.Optimizer):
    """Steps along the orthogonalised Nesterov momentum of matrices."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move the parameters by one step."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for shape, params in alike.items():  # many small matrices go through faster together
                for p in params:
                    if not self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    self.state[p]["momentum"].lerp_(p.grad, 1 - momentum)
                nesterov = [p.grad.lerp(self.state[p]["momentum"], momentum) for p in params]
                updates = orthogonal(torch.stack(nesterov))
                for p, update in zip(params, updates, strict=True):
                    p.mul_(1 - lr * group["weight_decay"])
                    p.add_(update, alpha=-lr * 0.2 * max(shape) ** 0.5)


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
        """The groups of both optimizers."""
        return [*self.matrices.param_groups, *self.others.param_groups]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.wide:
            p.grad = None
        self.others.zero_grad()

    def step(self) -> None:
        """Move the parameters by one step."""
        for view, p in zip(self.views, self.wide, strict=True):
            view.grad = None if p.grad is None else matrix(p.grad)
        self.matrices.step()
        self.others.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimizers."""
        return {"matrices": self.matrices.state_dict(), "others": self.others.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.matrices.load_state_dict(state["matrices"])
        self.others.load_state_dict(state["others"])
