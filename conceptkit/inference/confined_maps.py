"""What concepts change in a staged drawing: keys and values by words, the other maps by cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from conceptkit.concepts.gates import RankGate
from conceptkit.inference.drawing_stage import Stage, repeated
from conceptkit.tuners.inject import ADAPTER
from conceptkit.tuners.kv_delta import KVDeltaLinear

Factor = Callable[[Stage, Tensor], Tensor | None]


def gate_layer(
    layer: KVDeltaLinear, stage_of: Callable[[], Stage | None], factor: Factor
) -> Callable[[], None]:
    """Multiply what a layer adds by `factor` in a stage alone; gives the way back."""
    before = layer.gates.get(ADAPTER)

    def gate(x: Tensor) -> Tensor | None:
        stage = stage_of()
        if stage is None:
            return before(x) if before else x.new_ones(())
        share = factor(stage, x)
        return None if share is None else share.to(x)

    layer.gates[ADAPTER] = gate

    def undo() -> None:
        if layer.gates.get(ADAPTER) is gate:
            del layer.gates[ADAPTER]
            if before:
                layer.gates[ADAPTER] = before

    return undo


def of_words(stage: Stage, x: Tensor) -> Tensor | None:
    """Keys, values and text encoders: whole where a concept's words are read, or with a style."""
    return x.new_ones(()) if stage.part is not None or stage.styled else None


def of_cells(gates: Sequence[RankGate]) -> Factor:
    """The other maps: each rank in the cells of its own concepts, a style's everywhere.

    gates: whose the ranks are; () where that is unknown, so that all act wherever a concept is.
    """

    def factor(stage: Stage, x: Tensor) -> Tensor | None:
        laid_out = stage.masks is not None
        if not laid_out and not stage.styled:
            return None
        if not gates:
            return x.new_ones(()) if stage.styled else _share(stage, x, range(len(stage.names))).unsqueeze(-1)
        key = (x.shape[1] if x.ndim == 3 else 0, len(x))
        if laid_out and key in stage.shares:
            return stage.shares[key]
        styles = {name for scene in stage.scenes for name in scene.styles}
        found = []
        for gate in gates:
            own = [i for i, name in enumerate(stage.names) if gate.words is None or name in gate.words]
            if gate.words is not None and styles & set(gate.words):
                share = x.new_ones(())
            else:
                share = _share(stage, x, own) if laid_out and own else x.new_zeros(())
            found.append(share.unsqueeze(-1).expand(*share.shape, gate.ranks))
        shape = max((part.shape[:-1] for part in found), key=len)
        shares = torch.cat([part.expand(*shape, part.shape[-1]) for part in found], dim=-1)
        if laid_out:
            stage.shares[key] = shares
        return shares

    return factor


def of_part(gates: Sequence[RankGate]) -> Factor:
    """The other maps where each part of a picture has a call of its own: each rank in that of its concepts, a
    style's in all.

    gates: whose the ranks are; () where that is unknown, so that all act in each part.
    """

    def factor(stage: Stage, x: Tensor) -> Tensor | None:
        if stage.part is None and not stage.styled:
            return None
        if not gates:
            return x.new_ones(())
        own = {name for scene in stage.scenes for name in scene.styles}
        own |= set() if stage.part is None else {stage.part}
        acts = [
            stage.part is not None if gate.words is None else bool(own & set(gate.words)) for gate in gates
        ]
        return torch.cat([x.new_full((gate.ranks,), float(on)) for gate, on in zip(gates, acts, strict=True)])

    return factor


def _share(stage: Stage, x: Tensor, own: Sequence[int]) -> Tensor:
    """How far cells of x (B, cells, c) are those of concepts `own`, (B, cells); 1 where x has no cells."""
    if x.ndim != 3:
        return x.new_ones(())
    return repeated(stage.cells(x.shape[1])[:, list(own)].sum(dim=1).clamp(max=1), len(x)).to(x)
