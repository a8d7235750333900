"""Bytes against fidelity: published adapters, each by its own recipe, beside concepts of this package.

    python -m benchmarks.storage_methods [--subjects 3] [--registry DIR] [--plot FILE.png]

The adapters are PEFT's own layers on the UNet, learned in the plain loop with the storybook's DreamBooth
recipe (rare word, class pictures, steps and batches). A method's rate is LoRA's there times what its source
takes over LoRA's. Their bytes are those of the values that they store in float16, without a header; ours are
whole files. Results are kept in the registry's folder, so that a run that was stopped goes on.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from peft import (
    FourierFTConfig,
    IA3Config,
    LoKrConfig,
    PeftConfig,
    VeraConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from PIL import Image
from torch import nn

from benchmarks.learn_common import SEEDS, Pupil, Studio, briefly, lacking
from benchmarks.learn_speed import class_pictures
from benchmarks.plain_loop import ATTENTION_MAPS, Plain, lora
from benchmarks.report import finish, use_own_cores
from benchmarks.taught import teach, unseen
from conceptkit.base import pipeline as bases
from conceptkit.compression.sizes import PRESETS, SizeRequest
from conceptkit.concepts.concept import read
from conceptkit.inference.generate import STEPS
from conceptkit.learn.config import TrainConfig, config_for
from conceptkit.pictures.charts import scatter
from conceptkit.registry.store import Registry
from conceptkit.workflows.shrink import shrink_to

SUBJECTS = 3
MAPS = list(ATTENTION_MAPS)
SVD_RATIO = 0.6
"""Of the sum of a map's singular values, what Custom Diffusion's published compression keeps."""
OURS = "conceptkit"


@dataclass(frozen=True)
class Adapter:
    """A layer of PEFT: its configuration, its rate over LoRA's, and where both come from."""

    config: Callable[[], PeftConfig]
    rate: float
    source: str


ADAPTERS: Mapping[str, Adapter] = {
    "LoRA r4": Adapter(lambda: lora(4, MAPS), 1.0, "diffusers, train_dreambooth_lora.py"),
    "LoRA r1": Adapter(lambda: lora(1, MAPS), 1.0, "diffusers, train_dreambooth_lora.py"),
    "LoKr": Adapter(
        lambda: LoKrConfig(r=8, alpha=8, target_modules=MAPS), 1.0, "PEFT, examples/lora_dreambooth"
    ),
    "VeRA": Adapter(
        lambda: VeraConfig(r=64, target_modules=MAPS, save_projection=False, d_initial=0.1),
        10.0,
        "2310.11454, table 8",
    ),
    "IA3": Adapter(
        lambda: IA3Config(target_modules=["to_k", "to_v", "ff.net.2"], feedforward_modules=["ff.net.2"]),
        10.0,
        "2205.05638, section 3.3",
    ),
    "FourierFT": Adapter(
        lambda: FourierFTConfig(n_frequency=256, scaling=64.0, target_modules=MAPS, init_weights=True),
        10.0,
        "2405.03003",
    ),
}
LEARNED = (*ADAPTERS, "Textual Inversion", "Custom Diffusion")
CUT = "Custom Diffusion, SVD"


class AdapterLoop(Plain):
    """The plain loop with another adapter of PEFT on the UNet."""

    def __init__(self, config: PeftConfig, *given: Any) -> None:
        self.config = config
        super().__init__(*given)

    def adapt(self, unet: nn.Module) -> list[nn.Parameter]:
        self.adapted = get_peft_model(unet, self.config)  # its layers are in the UNet itself
        return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def recipe_for(name: str, steps: int | None) -> TrainConfig:
    """The storybook's row of the method, with the adapter's rate."""
    if name == "Custom Diffusion":
        return config_for("custom-diffusion", steps, rank=0, changes={"caption_preservation_weight": 0.0})
    row = config_for("dreambooth", steps, changes={"text_encoder_rank": 0})
    if name == "Textual Inversion":  # the loop of Custom Diffusion, of which the word alone learns
        own = config_for("textual-inversion")
        rates = {"token_learning_rate": own.token_learning_rate, "full_learning_rate": 0.0}
        row = config_for("custom-diffusion", own.token_train_steps if steps is None else steps, rank=0)
        return replace(row, **rates, prior_loss_weight=0.0, prior_batch_size=0)
    return replace(row, learning_rate=row.learning_rate * ADAPTERS[name].rate)


def learned(
    studio: Studio, pupil: Pupil, name: str, beside: Sequence[Image.Image], steps: int | None
) -> Plain:
    """A loop that has learned the subject by that method."""
    recipe = recipe_for(name, steps)
    given = (studio.base, pupil.shown.pictures, beside if recipe.prior_batch_size else [], pupil.noun, recipe)
    loop = AdapterLoop(ADAPTERS[name].config(), *given) if name in ADAPTERS else Plain(*given)
    for _ in range(recipe.max_train_steps):
        loop.step()
    return loop


def values_of(loop: Plain, name: str) -> int:
    """How many numbers the method stores."""
    if isinstance(loop, AdapterLoop):
        return sum(tensor.numel() for tensor in get_peft_model_state_dict(loop.adapted).values())
    assert loop.table is not None
    word = loop.table.shape[1]
    return word if name == "Textual Inversion" else word + sum(w.numel() for w in loop.learned[:-1])


def cut(loop: Plain, base: bases.Base) -> int:
    """Cut what Custom Diffusion learned as its authors' compress.py does; how many numbers are left."""
    assert loop.table is not None
    before, count = dict(base.unet.named_parameters()), loop.table.shape[1]
    wanted = {id(weight) for weight in loop.learned}
    for name, weight in loop.base.unet.named_parameters():
        if id(weight) in wanted:
            with torch.no_grad():
                left, sizes, right = torch.linalg.svd(weight - before[name], full_matrices=False)
                rank = int((sizes.cumsum(0) / sizes.sum() < SVD_RATIO).sum()) + 1
                weight.copy_(before[name] + left[:, :rank] * sizes[:rank] @ right[:rank])
            count += rank * sum(weight.shape)
    return count


def ours(studio: Studio, pupil: Pupil, registry: Registry, number: int) -> dict[str, dict[str, float]]:
    """Preset -> bytes of the whole file, and the gap closed."""
    name, found = teach(studio.base, studio.who, registry, number).name, {}
    for preset, share in PRESETS.items():
        if share is None:
            concept = read(registry, f"{name}@1")
        else:
            concept = shrink_to(f"{name}@1", SizeRequest(preset), base=studio.base, registry=registry).concept
        likeness = studio.likeness(studio.in_places(pupil.name, concept), pupil.real)
        found[f"{OURS} {preset}"] = {"bytes": len(concept.to_bytes()), "gap": pupil.gap(likeness)}
    return found


def theirs(
    studio: Studio, pupil: Pupil, name: str, beside: Sequence[Image.Image], steps: int | None
) -> dict[str, dict[str, float]]:
    """Method -> bytes of its values in float16, and the gap closed; Custom Diffusion also when it is cut."""
    loop = learned(studio, pupil, name, beside, steps)
    drawer = copy.copy(studio)
    drawer.base = loop.base

    def line(values: int) -> dict[str, float]:
        return {
            "bytes": 2 * values,
            "gap": pupil.gap(drawer.likeness(drawer.in_places(loop.word), pupil.real)),
        }

    found = {name: line(values_of(loop, name))}
    if name == "Custom Diffusion":
        found[CUT] = line(cut(loop, studio.base))
    return found


def summary(lines: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Method -> mean bytes and gap over the subjects, and the worst subject's gap."""
    table: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for own in lines.values() for name in own):
        own = [line[name] for line in lines.values() if name in line]
        gaps = [one["gap"] for one in own]
        table[name] = {
            "bytes": float(np.mean([one["bytes"] for one in own])),
            "gap": float(np.mean(gaps)),
            "worst": min(gaps),
            "subjects": len(own),
        }
    return table


def above_all(table: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether no other method comes as near with as few bytes as one of our files."""
    mine = [line for name, line in table.items() if name.startswith(OURS)]
    return all(
        any(own["bytes"] <= line["bytes"] and own["gap"] >= line["gap"] for own in mine)
        for name, line in table.items()
        if not name.startswith(OURS)
    )


@click.command()
@click.option("--registry", "home", type=click.Path(path_type=Path), help="Where learned concepts are kept.")
@click.option("--subjects", "count", default=SUBJECTS, show_default=True, help="Unseen subjects.")
@click.option("--seeds", default=SEEDS, show_default=True, help="Pictures of each prompt.")
@click.option("--steps", type=int, help="Learning steps, to try the program itself.")
@click.option("--drawing", default=STEPS, show_default=True, help="Denoising steps of a picture.")
@click.option("--methods", default=",".join((OURS, *LEARNED)), show_default=True)
@click.option("--plot", type=click.Path(path_type=Path), help="A picture of fidelity against bytes.")
def main(
    home: Path | None,
    count: int,
    seeds: int,
    steps: int | None,
    drawing: int,
    methods: str,
    plot: Path | None,
) -> None:
    use_own_cores()
    home = home or Path(tempfile.mkdtemp())
    kept = home / "storage_methods.json"
    lines: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    studio = Studio(bases.load(), seeds, drawing)
    with Registry(home) as registry:
        for number in range(count):
            pupil = studio.pupil(f"thing{number}", unseen(number + 1)[number], number)
            own = lines.setdefault(str(number), {})
            beside: list[Image.Image] = []
            for name in methods.split(","):
                if any(key.startswith(name) for key in own):
                    continue
                if name == OURS:
                    made = ours(studio, pupil, registry, number)
                else:
                    beside = beside or class_pictures(studio.base, config_for("dreambooth"), pupil.noun)
                    made = theirs(studio, pupil, name, beside, steps)
                own |= made
                kept.write_text(json.dumps(lines))
                for key, line in made.items():
                    print(f"{number} {key}: {briefly(line)}", flush=True)
    table = summary(lines)
    for name, line in table.items():
        print(f"{name:24} {briefly(line)}")
    if plot:
        points = {name: (line["bytes"], line["gap"]) for name, line in table.items()}
        scatter(
            "Bytes of a concept, and how like the subject its pictures are",
            "bytes (others: values in float16; conceptkit: whole files)",
            "share of the gap closed",
            points,
            joined=OURS,
        ).save(plot, optimize=True)
    trial = lacking(steps, count, seeds, drawing, SUBJECTS)
    finish(
        "storage_methods",
        table,
        "bytes, and share of the gap",
        {},
        above_all(table),
        f"0..{seeds - 1}",
        trial=trial,
    )


if __name__ == "__main__":
    main()
