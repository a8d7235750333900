"""Learning that was stopped goes on where it stood, and gives the same bytes as if it never had been.

A checkpoint is what a step begins with: parameters, the optimiser's moments, the best state so far. Random
numbers depend on the seed and the step alone, so that nothing else has to be kept. It is written whole or not
at all, and only for a step whose loss is a number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from conceptkit.concepts.recipe_fields import current_fields
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.learn.optimizers import ESTIMATES
from conceptkit.learn.subject import StateAndPlace
from conceptkit.learn.train_config import RATES, TrainConfig
from conceptkit.registry.atomic_files import write_whole
from conceptkit.safetensors_header import read_metadata

FORMAT = 1
EVERY = 10.0
"""Seconds between two checkpoints; more where writing one takes over a twentieth of that."""


_RATES = {f.name: f.default for f in fields(TrainConfig) if f.name in RATES}
"""What a rate is where a recipe leaves it off."""


@dataclass(eq=False)
class CheckpointState:
    """Where learning stands at the beginning of a step."""

    stage: str
    step: int
    tensors: dict[str, Tensor]
    curve: list[tuple[int, float]] = field(default_factory=list)
    best: int | None = None


@dataclass(eq=False)
class CheckpointManager:
    """Keeps checkpoints of one run in one file; without a path it keeps nothing.

    about: what is being learned, JSON: a checkpoint of anything else is refused. looks, scenes: the words at
    which tokens began, and those for what a photo shows, by subject, which a run that goes on takes over.
    """

    path: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    every: float = EVERY
    resumed: CheckpointState | None = None
    notices: list[str] = field(default_factory=list)
    looks: dict[str, str | None] = field(default_factory=dict)
    scenes: dict[str, StateAndPlace] = field(default_factory=dict)
    _due: float = 0.0
    _wrote: bool = False

    @property
    def unfinished(self) -> bool:
        """Whether there is something of this run to go on with."""
        return self._wrote or self.resumed is not None

    def resume(self) -> None:
        """Read the checkpoint. Raises ConceptError when there is none, BadRecipe when of another run."""
        if self.path is None or not self.path.is_file():
            raise ConceptError("Nothing unfinished was found to go on with; leave --resume out")
        about, self.looks, self.scenes, self.resumed = _read(self.path)
        differing = _differences(about, self.about)
        hard = [text for name, (text, both) in differing.items() if name not in RATES or not both]
        if hard:
            raise BadRecipe(
                f"The checkpoint was made with {_list(hard)}; "
                "give the same, or leave --resume out to begin anew"
            )
        if differing:
            texts = [text for text, _ in differing.values()]
            self.notices.append(f"Learning goes on at other rates than it began: {_list(texts)}.")

    def at(self, stage: str) -> CheckpointState | None:
        """The checkpoint, when it was made in this stage."""
        return self.resumed if self.resumed is not None and self.resumed.stage == stage else None

    def is_past(self, stage: str) -> bool:
        """Whether the checkpoint was made after this stage, the first of two."""
        return self.resumed is not None and self.resumed.stage != stage

    def keep(self, state: CheckpointState) -> None:
        """Write the state if one is due."""
        if self.path is None or time.monotonic() < self._due:
            return
        begun = time.monotonic()
        write(self.path, state, self.about, self.looks, self.scenes)
        self._wrote = True
        ended = time.monotonic()
        self._due = ended + max(self.every, 20 * (ended - begun) if self.every else 0.0)

    def drop(self) -> None:
        """What was learned is stored elsewhere now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def path_for(home: Path, name: str) -> Path:
    """The file of the checkpoint of a run of that name."""
    return home / "checkpoints" / f"{name}.safetensors"


def write(
    path: Path,
    state: CheckpointState,
    about: Mapping[str, Any],
    looks: Mapping[str, str | None],
    scenes: Mapping[str, StateAndPlace],
) -> None:
    """Put the state on disk, durably, in one move."""
    header = {
        "format": FORMAT,
        "about": dict(about),
        "looks": dict(looks),
        "scenes": dict(scenes),
        "stage": state.stage,
        "step": state.step,
        "curve": state.curve,
        "best": state.best,
    }
    data = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors.items()},
        {"conceptkit": json.dumps(header, sort_keys=True)},
    )
    write_whole(path, lambda out: out.write(data))


def capture(
    parameters: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    best: Sequence[Tensor] | None,
    scaler: torch.amp.GradScaler,
) -> dict[str, Tensor]:
    """All that the next step depends on, as tensors."""
    tensors = {f"parameter.{k}": p.data for k, p in enumerate(parameters)}
    places = [p for group in optimiser.param_groups for p in group["params"]]
    for k, parameter in enumerate(places):
        for name, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{k}.{name}"] = _packed(value)
    for k, group in enumerate(optimiser.param_groups):
        tensors |= {f"estimate.{k}.{name}": _packed(group[name]) for name in ESTIMATES if name in group}
    tensors |= {f"scaler.{name}": _packed(value) for name, value in scaler.state_dict().items()}
    return tensors | {f"best.{k}": value for k, value in enumerate(best or ())}


def restore(
    tensors: Mapping[str, Tensor],
    parameters: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> list[Tensor] | None:
    """Put captured tensors back; returns the best values so far."""
    for k, parameter in enumerate(parameters):
        parameter.data.copy_(tensors[f"parameter.{k}"])
    moments: dict[int, dict[str, Any]] = {}
    scaling: dict[str, Any] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimiser":
            index, _, moment = rest.partition(".")
            moments.setdefault(int(index), {})[moment] = _unpacked(value)
        elif kind == "scaler":
            scaling[rest] = _unpacked(value)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    for k, group in enumerate(optimiser.param_groups):
        for name in ESTIMATES:
            if (kept := tensors.get(f"estimate.{k}.{name}")) is not None:
                group[name] = _unpacked(kept)
    if scaling:
        scaler.load_state_dict(scaling)
    best = [tensors[f"best.{k}"] for k in range(len(parameters)) if f"best.{k}" in tensors]
    return best or None


def _packed(value: Any) -> Tensor:
    """Plain numbers go as single ones of 64 bits, which nothing else here is."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _unpacked(value: Tensor) -> Any:
    return value.item() if value.ndim == 0 and value.dtype in (torch.int64, torch.float64) else value


def _read(
    path: Path,
) -> tuple[dict[str, Any], dict[str, str | None], dict[str, StateAndPlace], CheckpointState]:
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        header = read_metadata(data)
        if header["format"] != FORMAT:
            raise ValueError(header["format"])
        curve = [(int(step), float(value)) for step, value in header["curve"]]
        state = CheckpointState(header["stage"], header["step"], tensors, curve, header["best"])
        return (
            _current(header["about"]),
            header.get("looks", {}),
            {name: StateAndPlace(*scene) for name, scene in header.get("scenes", {}).items()},
            state,
        )
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise ConceptError(
            f"The checkpoint {path} cannot be read; delete it, or leave --resume out to begin anew"
        ) from error


def _current(about: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version's checkpoint is of, in the words of today."""
    found = {"class_images" if name == "prior_photos" else name: value for name, value in about.items()}
    return {**found, "recipe": current_fields(found["recipe"])} if "recipe" in found else found


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Field -> ("max_train_steps = 240, not 300", whether both are something), of nested tables too."""
    now = json.loads(json.dumps(now))
    found: dict[str, tuple[str, bool]] = {}
    for name in dict.fromkeys([*then, *now]):
        before, after = (some.get(name, _RATES.get(name)) for some in (then, now))
        if isinstance(before, dict) and isinstance(after, dict):
            found |= _differences(before, after)
        elif before != after:
            found[name] = f"{name} = {_short(before)}, not {_short(after)}", bool(before and after)
    return found


def _short(value: Any) -> str:
    text = "off" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def _list(texts: Any) -> str:
    return "; ".join(texts)
