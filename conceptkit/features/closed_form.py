"""The closed-form merge as pure mathematics of tensors, in float64 (Custom Diffusion, 2212.04488, eq. 5).

W0 (O, d) are all key and value maps of a base, stacked. Concept i adds D_i; its constraint rows C_i (s_i, d)
are text features of its own words, and R_i = C_i D_i^T (s_i, O) is what it adds there. With C and R the rows
of all concepts and G (d, d) the second moment of the features of ordinary captions, the merge D is

    argmin tr(D G D^T)  subject to  D C^T = R^T
    = B A  with  A = M^-1 C G^-1 (s, d),  B = R^T (O, s),  M = C G^-1 C^T (s, s):

of rank s, with a right factor that all maps share. Nothing of size (O, d) is built.

With G = L L^T the rows are whitened once for each concept, W = C L^-T; then M = W W^T and A = M^-1 W L^-1.
Everything is read off the singular values of W, whose condition is the square root of that of M.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import brentq
from scipy.spatial.distance import squareform
from torch import Tensor

RIDGE = 1e-4
"""Of the mean eigenvalue of G: far below what captions differ by, far above rounding of their features."""
MAX_CONDITION = 1e3
"""Beyond it a thousandth of a row's direction is magnified to the size of the row, which features that move
with their context, and half precision, do not know to a thousandth. Rows that point anywhere at random reach
it at s/d = 0.88 (Marchenko and Pastur's edge, ((1 + sqrt(s/d)) / (1 - sqrt(s/d)))^2)."""
CROWDED = 0.5
"""Share of the d directions from which rows get in each other's way: at random ones the price of a row, what
it moves ordinary captions by, is 1 / (1 - s/d) times that of the row alone, so here it has doubled."""
PRICE = 2.0
"""The mean price of a row that is paid beyond CROWDED: the one at CROWDED."""
FULL = 0.9
"""Share from which the hard problem leaves ordinary captions no direction of their own: see MAX_CONDITION."""
SPAN_ENERGY = 0.01
"""Beyond FULL, D reads only the weakest directions of G, those with this share of all its energy: whatever
the concepts need, ordinary captions are hardly read by what is added (SPEED, 2503.07392)."""


CONTEXT_WEIGHT = 0.1
"""What missing a concept's own effect costs, where moving ordinary captions as far costs 1: see `soft_form`.
From 0.05 to 1 pictures are equally like their subjects; the less it is, the less do captions move."""


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

    def read(self, white: Tensor) -> Tensor:
        """white L^-1: (m, d) -> (m, d); of whitened rows it is rows G^-1."""
        return _tensor(solve_triangular(self.lower, _array(white).T, lower=True, trans="T").T)

    def colour(self, white: Tensor) -> Tensor:
        """white L^T: (m, d) -> (m, d), the rows that were whitened."""
        return white.double() @ _tensor(self.lower).T


@dataclass(frozen=True, eq=False)
class Solution:
    """D = up down, with down (s, d) and up (O, s).

    condition: of M with its rows scaled to one length, before damping; infinite for dependent rows.
    damping: 0 when the constraints hold exactly; else see `closed_form`.
    problem: "exact", "damped", or "span" when D reads only the weakest directions of G.
    shared: how many rows were so close to others that they share one constraint.
    """

    down: Tensor
    up: Tensor
    condition: float
    damping: float
    problem: str = "exact"
    shared: int = 0


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
    white, condition, damping = _inverse(metric.whiten(rows), max_condition)
    problem = "damped" if damping > 0 else "exact"
    return Solution(metric.read(white), targets.T, condition, damping, problem)


def merge_rows(
    white: Tensor, targets: Tensor, metric: Factor, max_condition: float = MAX_CONDITION
) -> Solution:
    """The merge for whitened rows W (s, d) and targets R (s, O), at any number of rows.

    Rows so close that two of them alone would break the bound on the condition first become one constraint:
    the mean of what they ask for, each at the length of one. Then it is the problem of `closed_form`; from
    s/d > CROWDED on with as much damping as brings the price of a row down to PRICE; and from s/d > FULL on
    D = D' E^T, where E spans what `weak_span` finds, is the only thing that is looked for.
    """
    together = near_rows(white, max_condition)
    unit = together @ white.double()
    crowd = len(unit) / white.shape[1]
    if crowd > FULL:
        sizes, span = weak_span(metric)
        inner, condition, damping = _inverse(metric.colour(unit) @ (span / sizes), max_condition)
        down, problem = inner @ (span / sizes).T, "span"
    else:
        inner, condition, damping = _inverse(unit, max_condition, PRICE if crowd > CROWDED else None)
        down, problem = metric.read(inner), "damped" if damping > 0 else "exact"
    shared = len(white) - len(unit)
    return Solution(together.T @ down, targets.T, condition, damping, problem, shared)


def soft_form(
    asked: Tensor, seen: Tensor, metric: Factor, weight: float = CONTEXT_WEIGHT
) -> tuple[Tensor, float, float]:
    """The merge that misses every concept a little, on all of its prompts, instead of none at its rows.

    Concept i adds D_i; X_i (m_i, d) are features of prompts with it, ||X_i||^2 a mean over them. The merge

        argmin tr(D G D^T) + weight sum_i ||(D - D_i) X_i^T||^2
        = weight sum_i D_i X_i^T X_i H^-1,  H = G + weight sum_i X_i^T X_i

    is the mean of the deltas by what each of them reads (RegMean, 2212.09849, eq. 2), with ordinary captions
    as one that asks for nothing. With X_i D_i^T = Q_i Z_i of r_i columns it is B A: A = weight P H^-1, whose
    P stacks Q_i^T X_i, and B the Z_i^T. asked: P L^-T (r, d); seen: all X_i L^-T (m, d), L L^T = G.
    Returns A (r, d), the directions that it uses, of d, tr(I - G H^-1), and the condition of L^-1 H L^-T.
    """
    white = seen.double()
    inside = torch.eye(white.shape[1], dtype=torch.float64) + weight * (white.T @ white)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(inside))
    used = float(len(inside) - inverse.trace())
    condition = float(torch.linalg.matrix_norm(inside, 1) * torch.linalg.matrix_norm(inverse, 1))
    return metric.read(weight * asked.double() @ inverse), used, condition


def near_rows(white: Tensor, max_condition: float = MAX_CONDITION) -> Tensor:
    """T (g, s): T W are the means of rows of W that nearly coincide, each at length 1 and with its sign.

    Two unit rows of inner product c have the condition (1 + c) / (1 - c); groups are complete: any two of
    their rows are that close, whatever the order of the rows.
    """
    length = white.double().norm(dim=1)
    unit = white.double() / torch.where(length > 0, length, 1.0).unsqueeze(1)
    likeness = (unit @ unit.T).clamp(-1, 1)
    of = np.arange(len(unit))
    if len(unit) > 1:
        apart = 1 - likeness.abs().fill_diagonal_(1.0).numpy()
        tree = linkage(squareform(apart, checks=False), method="complete")
        of = fcluster(tree, 2 / (max_condition + 1), criterion="distance") - 1
        of = np.unique(of, return_inverse=True)[1]
    first = [int(np.argmax(of == group)) for group in range(of.max() + 1)]
    sign = torch.where(likeness[torch.arange(len(of)), torch.tensor(first)[of]] < 0, -1.0, 1.0)
    member = (torch.arange(len(first)).unsqueeze(1) == torch.from_numpy(of)).double()
    scale = torch.where(length > 0, 1 / length.clamp(min=1e-300), 0.0)
    return member / member.sum(dim=1, keepdim=True) * (sign * scale)


def weak_span(metric: Factor, share: float = SPAN_ENERGY) -> tuple[Tensor, Tensor]:
    """The weakest directions of G: (sizes (q,), E (d, q)), sizes^2 their energies, at most `share` of all.

    At least one direction, the weakest, whatever it holds.
    """
    lower = _tensor(metric.lower)
    values, vectors = torch.linalg.eigh(lower @ lower.T)
    values = values.clamp(min=metric.ridge * 0.5)
    q = max(1, int((values.cumsum(0) <= share * values.sum()).sum()))
    return values[:q].sqrt(), vectors[:, :q]


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


def _inverse(white: Tensor, bound: float, price: float | None = None) -> tuple[Tensor, float, float]:
    """(N (K + damping I)^-1 N W, condition of K, damping), with K = N W W^T N and N W rows of length 1.

    Through the singular values of N W = P S Q^T: the inverse is P S / (S^2 + damping) Q^T. Rows of zeros ask
    for nothing and get zeros.
    """
    length = white.norm(dim=1)
    there = length > 0
    result = torch.zeros_like(white, dtype=torch.float64)
    if not there.any():
        return result, 1.0, 0.0
    unit = white[there].double() / length[there].unsqueeze(1)
    left, sizes, right = torch.linalg.svd(unit, full_matrices=False)
    spectrum = torch.zeros(len(unit), dtype=torch.float64)
    spectrum[: len(sizes)] = sizes.square()
    largest, least = float(spectrum[0]), float(spectrum[-1])
    condition = largest / least if least > largest * torch.finfo(torch.float64).eps else float("inf")
    damping = max(0.0, (largest - bound * least) / (bound - 1))
    if price is not None:
        damping = max(damping, _affordable(spectrum.numpy(), price))
    shrunk = torch.where(sizes > 0, sizes / (sizes.square() + damping), 0.0)
    result[there] = (left * shrunk) @ right / length[there].unsqueeze(1)
    return result, condition, damping


def _affordable(spectrum: np.ndarray, price: float) -> float:
    """The least damping at which a row costs ordinary captions `price` times what it costs alone, on average.

    With unit rows and targets that know nothing of one another that is the mean of s^2 / (s^2 + damping)^2.
    """

    def excess(damping: float) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            paid = np.nan_to_num(spectrum / (spectrum + damping) ** 2, nan=0.0, posinf=np.inf)
        return float(min(paid.mean(), 1e300)) - price

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, float(spectrum.sum()) + 1.0, xtol=1e-12))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
