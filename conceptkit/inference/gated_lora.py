"""Gated LoRA: what a concept changes beside keys and values acts only where prompts say its words."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conceptkit.concepts.gates import RankGate, reads_text
from conceptkit.inference.attention_masks import Where
from conceptkit.inference.token_owners import UNKNOWN, TokenOwners, UNetCall
from conceptkit.tuners.inject import ADAPTER
from conceptkit.tuners.kv_delta import KVDeltaLinear


def gate_lora(
    layers: Mapping[str, KVDeltaLinear],
    heard: Sequence[RankGate],
    reading: TokenOwners,
    where: Where | None = None,
) -> None:
    """Let the ranks of the wide maps on a UNet act by what is read, until the delta is taken off.

    layers: those of the delta, by the names of their maps.
    where: in which cells of a picture each of the concepts that are read may be; everywhere if None.
    """
    last: list[tuple[UNetCall, Tensor]] = []

    def gate(x: Tensor) -> Tensor:
        scene = reading.scene
        known = next((found for of, found in last if of is scene), None)
        if known is None:
            known = gates(scene, reading.names, heard)
            last[:] = [(scene, known)]
        # A layer may be given a part of the batch, whole pictures in their order.
        whole = len(x) % len(known) == 0
        rows = known.repeat(len(x) // len(known), 1) if whole else known.amax(dim=0, keepdim=True)
        rows = rows.unsqueeze(1) if x.ndim == 3 else rows  # maps of the time read one row a picture
        inside = where(scene, x.shape[1]) if where and x.ndim == 3 else None
        if inside is not None:
            cells = _own_cells(inside, reading.names, heard)
            # Both halves of guidance are of one picture: its cells are those of the half that names anyone.
            cells = cells.view(-1, len(known), *cells.shape[1:]).all(dim=0)
            rows = rows * cells.repeat(len(x) // len(known), 1, 1).to(rows) if whole else rows
        return rows.to(x)

    for name, layer in layers.items():
        if not reads_text(name):
            layer.gates[ADAPTER] = gate


def gates(scene: UNetCall, names: Sequence[str], heard: Sequence[RankGate]) -> Tensor:
    """How far each rank acts on each picture: (pictures, ranks), 1 or 0.

    Both halves of guidance belong to one picture. Prompts that nobody has read may say anything: every gate
    speaks on pictures of which no other prompt is known.
    """
    pictures = scene.pictures if len(scene.owners) % scene.pictures == 0 else 1
    owners = scene.owners.view(-1, pictures, scene.owners.shape[1])
    said = [(owners == i).any(dim=2).any(dim=0) for i in range(len(names))]
    if scene.before is not None:
        earlier = scene.before.view(-1, pictures, len(names)).any(dim=0)
        said = [mentioned | earlier[:, i] for i, mentioned in enumerate(said)]
    unread = (owners == UNKNOWN).all(dim=2).all(dim=0)
    found = []
    for one in heard:
        own = [mentioned for name, mentioned in zip(names, said, strict=True) if name in (one.words or ())]
        always = torch.ones_like(unread) if one.words is None else unread
        speaks = torch.stack([always, *own]).any(dim=0)
        found.append(speaks.unsqueeze(1).expand(-1, one.ranks))
    return torch.cat(found, dim=1).float()


def _own_cells(inside: Tensor, names: Sequence[str], heard: Sequence[RankGate]) -> Tensor:
    """Where each rank may act, (B, cells, ranks), from where each concept may be, (B, N, cells)."""
    found = []
    for one in heard:
        own = [i for i, name in enumerate(names) if name in (one.words or ())]
        cells = torch.ones_like(inside[:, 0]) if one.words is None else inside[:, own].any(dim=1)
        found.append(cells.unsqueeze(2).expand(-1, -1, one.ranks))
    return torch.cat(found, dim=2)
