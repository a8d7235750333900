"""How far the closed form is from the exact KKT point, over condition numbers, hard and damped.

The KKT point is worked out with 40 digits, so that what is measured is the error of the answer alone.
"""

from __future__ import annotations

import click
import mpmath
import numpy as np
import torch
from rich.progress import track

from benchmarks.report import finish
from conceptkit.features.closed_form import closed_form, factor

BAR, UP_TO = 1e-8, 1e8
D, S, OUTPUTS = 16, 6, 5


def rows_of_condition(condition: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(G, C, R): an uneven moment, rows whose scaled M has about this condition, any targets."""
    make = torch.Generator().manual_seed(seed)
    shape = torch.randn(4 * D, D, generator=make, dtype=torch.float64) * torch.logspace(0, -1, D).double()
    moment = shape.T @ shape / len(shape)
    lower = torch.from_numpy(factor(moment).lower)
    left = torch.linalg.qr(torch.randn(S, S, generator=make, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(D, S, generator=make, dtype=torch.float64))[0]
    white = left @ torch.diag(torch.logspace(0, -np.log10(condition) / 2, S).double()) @ right.T
    return moment, white @ lower.T, torch.randn(S, OUTPUTS, generator=make, dtype=torch.float64)


def residual(
    moment: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, bound: float
) -> tuple[float, float]:
    """(relative distance from the exact KKT point of the problem that was solved, condition)."""
    metric = factor(moment)
    found = closed_form(rows, targets, metric, bound)
    mpmath.mp.dps = 40
    # The metric of the problem is what the factor multiplies out to; its rounding is not the solver's.
    lower = mpmath.matrix(metric.lower.tolist())
    c = mpmath.matrix(rows.tolist())
    inverse = mpmath.inverse(lower * lower.T)
    m = c * inverse * c.T
    for i in range(len(rows)):
        m[i, i] *= 1 + mpmath.mpf(found.damping)
    exact = (mpmath.inverse(m) * c * inverse).T * mpmath.matrix(targets.tolist())
    d = mpmath.matrix((found.up @ found.down).T.tolist())
    return float(mpmath.mnorm(d - exact, "f") / mpmath.mnorm(exact, "f")), found.condition


@click.command()
@click.option("--seeds", default=20, show_default=True)
def main(seeds: int) -> None:
    hard: dict[str, float] = {}
    damped: dict[str, float] = {}
    within: list[float] = []
    for power in track(range(11), "solving"):
        errors = [residual(*rows_of_condition(10.0**power, seed), bound=1e13) for seed in range(seeds)]
        hard[f"1e{power}"] = max(error for error, _ in errors)
        within += [error for error, condition in errors if condition <= UP_TO]
        met = max(condition for _, condition in errors)
        soft = [residual(*rows_of_condition(10.0**power, seed), bound=1e3)[0] for seed in range(seeds)]
        damped[f"1e{power}"] = max(soft)
        print(
            f"condition 1e{power:<2} (up to {met:.1e}): hard {hard[f'1e{power}']:.1e}, damped {max(soft):.1e}"
        )
    value = max(within)
    finish(
        "compose_exactness",
        value,
        "largest relative distance from the exact KKT point at conditions up to 1e8",
        BAR,
        value <= BAR and max(damped.values()) <= BAR,
        f"0..{seeds - 1}",
        hard=hard,
        damped=damped,
    )


if __name__ == "__main__":
    main()
