"""The closed-form merge as pure mathematics of tensors, in float64 (Custom Diffusion, 2212.04488, eq. 5).

W0 (O, d) are all key and value maps of a base, stacked. Concept i adds D_i; its constraint rows C_i (s_i, d)
are text features of its own words, and R_i = C_i D_i^T (s_i, O) is what it adds there. With C and R the rows
of all concepts and G (d, d) the second moment of the features of ordinary captions, the merge D is

    argmin tr(D G D^T)  subject to  D C^T = R^T
    = B A  with  A = M^-1 C G^-1 (s, d),  B = R^T (O, s),  M = C G^-1 C^T (s, s):

of rank s, with a right factor that all maps share. Nothing of size (O, d) is built.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from torch import Tensor

RIDGE = 1e-4
MAX_CONDITION = 1e3


@dataclass(frozen=True, eq=False)
class Factor:
    """The Cholesky factor L (d, d) of G + ridge I; `ridge` in the units of G."""

    lower: np.ndarray
    ridge: float

    def solve(self, rows: Tensor) -> Tensor:
        """rows G^-1: (m, d) -> (m, d)."""
        return _tensor(cho_solve((self.lower, True), _array(rows).T).T)

    def whiten(self, rows: Tensor) -> Tensor:
        """rows L^-T: (m, d) -> (m, d), whose plain inner products are those in the metric of G^-1."""
        return _tensor(solve_triangular(self.lower, _array(rows).T, lower=True).T)


@dataclass(frozen=True, eq=False)
class Solution:
    """D = up down, with down (s, d) and up (O, s).

    condition: of M with its rows scaled to one length, before damping; infinite for dependent rows.
    damping: 0 when the constraints hold exactly; else see `closed_form`.
    """

    down: Tensor
    up: Tensor
    condition: float
    damping: float


def gram(hidden: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of x x^T over features x = hidden[i, t]: (n, T, d), (n, T) -> (d, d) float64."""
    rows, weight = hidden.double().flatten(0, -2), weights.double().flatten()
    kept = weight > 0
    rows, weight = rows[kept], weight[kept]
    return (rows * (weight / weight.sum()).unsqueeze(1)).T @ rows


def factor(moment: Tensor, ridge: float = RIDGE) -> Factor:
    """Factor G + ridge trace(G)/d I, once per base; a small base's features may not span all of d.

    Raises ValueError when G is zero or not finite.
    """
    matrix = moment.double()
    amount = ridge * float(matrix.trace()) / len(matrix)
    if not 0 < amount < float("inf"):
        raise ValueError(f"a second moment of trace {float(matrix.trace())} cannot be factored")
    lower, _ = cho_factor(_array(matrix + amount * torch.eye(len(matrix), dtype=torch.float64)), lower=True)
    return Factor(np.tril(lower), amount)


def principal_rows(
    rows: Tensor,
    metric: Factor,
    weights: Tensor | None = None,
    *,
    energy: float = 0.99,
    most: int = 8,
) -> Tensor:
    """The k combinations of rows (m, d) that hold `energy` of them in the metric of G^-1: (k, d), k <= most.

    They are orthogonal in that metric, the largest first; combinations of features, so R = C D^T stays true.
    Their size is the root mean square of what the features have of them, so a feature reads them as about 1.
    """
    share = torch.ones(len(rows)) if weights is None else weights
    weighted = rows.double() * (share.double() / share.double().sum()).sqrt().unsqueeze(1)
    left, sizes, _ = torch.linalg.svd(metric.whiten(weighted), full_matrices=False)
    held = sizes.square().cumsum(0) / sizes.square().sum()
    k = min(int((held < energy).sum()) + 1, most, len(sizes))
    return left[:, :k].T @ weighted


def closed_form(
    rows: Tensor, targets: Tensor, metric: Factor, max_condition: float = MAX_CONDITION
) -> Solution:
    """The merge for constraint rows C (s, d) and targets R (s, O).

    Let M_ii = m_i^2. While the condition of the scaled M_ij / (m_i m_j) stays within `max_condition` the
    constraints hold exactly. Beyond it, where rows nearly coincide, the result is the KKT point of

        argmin tr(D G D^T) + (1 / damping) sum_i ||D c_i - r_i||^2 / m_i^2

    with the least damping that brings the condition back to the bound. No row comes first: equal rows with
    different targets get their mean, however long the rows are or whichever concept they come from.
    """
    rows, targets = rows.double(), targets.double()
    white = metric.whiten(rows)
    length = white.norm(dim=1)
    length = torch.where(length > 0, length, 1.0)
    correlation = ((white @ white.T) / torch.outer(length, length)).fill_diagonal_(1.0)
    spectrum = torch.linalg.eigvalsh(correlation).clamp(min=0)
    least, largest = float(spectrum[0]), float(spectrum[-1])
    condition = largest / least if least > largest * torch.finfo(torch.float64).eps else float("inf")
    damping = max(0.0, (largest - max_condition * least) / (max_condition - 1))
    damped = correlation + damping * torch.eye(len(rows), dtype=torch.float64)
    # M^-1 belongs to the small factor: s^2 d operations there, s^2 O in the other.
    down = torch.linalg.solve(damped, metric.solve(rows) / length.unsqueeze(1)) / length.unsqueeze(1)
    return Solution(down, targets.T.contiguous(), condition, damping)


def balanced(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each column of `up` brought to a largest entry near 1, by exact powers of two.

    Half precision then spends its range on the values that matter.
    """
    size = up.abs().amax(dim=0)
    scale = torch.where(size > 0, size, 1.0).log2().floor().exp2()
    return down * scale.unsqueeze(1), up / scale


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||; 0 when both vanish."""
    missed, size = float((found - wanted).norm()), float(wanted.norm())
    return missed / size if size > 0 else (float("inf") if missed > 0 else 0.0)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
