"""Make a concept smaller where the text features will not miss it: truncate D S^(1/2), not D."""

from dataclasses import replace

import torch
from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import READS_TEXT, Delta, Factors
from conceptkit.errors import BadRecipe
from conceptkit.features.closed_form import RIDGE, balanced, factor


def shrink_concept(
    concept: Concept, gram: Tensor, *, rank: int | None = None, energy: float | None = None
) -> Concept:
    """The concept with its delta cut to `rank`, or to the smallest rank that holds `energy` in (0, 1].

    gram: S (d, d), the second moment of the base's text features. With D (O, d) all maps stacked and
    S = L L^T, D L is cut to its k largest singular directions V: D' = (D L V) (V^T L^-1), whose right factor
    all maps share. Maps that do not read text features stay as they are. Raises BadRecipe unless exactly one
    of rank and energy is given, in its range, for a routed merge, whose ranks are its routes, and for a
    concept that looks at a reference photo.
    """
    check_size(rank, energy)
    if concept.routing:
        raise BadRecipe(
            f"{concept.name} is routed, and each of its ranks is somebody's; shrink its parts instead"
        )
    if concept.reference is not None:
        raise BadRecipe(
            f"{concept.name} looks at its reference photo through maps that read no text, so text features "
            "cannot say what to cut; learn it again with a smaller --rank"
        )
    read = concept.delta.only([name for name in concept.delta if name.endswith(READS_TEXT)])
    if not read:
        return concept
    root = torch.from_numpy(factor(gram).lower)
    values, directions = torch.linalg.eigh(_moment(read, root))
    values, directions = values.flip(0).clamp(min=0), directions.flip(1)
    if rank is None:
        held = values.cumsum(0) / values.sum()
        rank = int((held < energy).sum()) + 1
    kept = directions[:, : min(rank, int((values > values[0] * 1e-14).sum()))]

    up = torch.cat([factors.apply((root @ kept).T).T for factors in read.values()])
    down, up = balanced(torch.linalg.solve_triangular(root, kept.T, upper=False, left=False), up)
    shared = down.float()
    blocks = up.float().split([factors.shape[0] for factors in read.values()])
    cut = {name: Factors(block, shared) for name, block in zip(read, blocks, strict=True)}
    delta = concept.delta | Delta(cut, dict.fromkeys(cut, 0))
    recipe = {**concept.recipe, "shrunk": {"rank": kept.shape[1], "ridge": RIDGE}}
    return replace(concept, delta=delta, recipe=recipe)


def check_size(rank: int | None, energy: float | None) -> None:
    """Raises BadRecipe unless exactly one of them is given, a rank of at least 1 or an energy in (0, 1]."""
    if (rank is None) == (energy is None):
        raise BadRecipe("Give either the rank or the energy to shrink to")
    if rank is not None and rank < 1:
        raise BadRecipe(f"Nothing can be shrunk to rank {rank}; give 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise BadRecipe(f"Nothing can be shrunk to the energy {energy}; give one above 0 and up to 1")


def _moment(delta: Delta, root: Tensor) -> Tensor:
    """L^T D^T D L (d, d), summed map by map."""
    moment = torch.zeros_like(root)
    for factors in delta.values():
        made = factors.apply(root.T)
        moment += made @ made.T
    return moment
