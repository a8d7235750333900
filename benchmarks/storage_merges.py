"""Merges of concepts in few bytes: what they lose of likeness, beside what their parts lose alone.

    python -m benchmarks.storage_merges [--registry DIR] [--pairs 3] [--size tiny]

Two subjects at a time are merged as they were learned, and as files of that size. Each is drawn alone and in
both merges, with the same prompts and seeds. Results are kept in the registry's folder, pair by pair: a run
that was stopped goes on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.learn_common import SEEDS, Studio, briefly
from benchmarks.report import finish, shortfall, use_own_cores
from benchmarks.taught import interval, teach, unseen
from conceptkit.base import pipeline as bases
from conceptkit.compression.sizes import FULL, PRESETS, SizeRequest, compress
from conceptkit.concepts.concept import Concept, read
from conceptkit.inference.generate import STEPS
from conceptkit.merging.compose import compose
from conceptkit.registry.store import Registry

PAIRS = 3
SIZES = [name for name, share in PRESETS.items() if share]
WAYS = ("alone", "merged")


def gaps_of(studio: Studio, registry: Registry, numbers: Sequence[int], size: str) -> list[dict[str, float]]:
    """Of each subject the gap that it closes: alone and merged with the other, each whole and small."""
    names = [teach(studio.base, studio.who, registry, number).name for number in numbers]
    pupils = [
        studio.pupil(name, unseen(number + 1)[number], number)
        for name, number in zip(names, numbers, strict=True)
    ]
    whole = [read(registry, f"{name}@1") for name in names]
    small = [compress(concept, studio.base, SizeRequest(size)).concept for concept in whole]
    made: dict[str, list[Concept]] = {"alone": whole, f"alone {size}": small}
    for label, parts in (("merged", whole), (f"merged {size}", small)):
        made[label] = [compose(*parts, base=studio.base, registry=registry).concept] * len(parts)
    return [
        {
            label: pupil.gap(studio.likeness(studio.in_places(pupil.name, concepts[k]), pupil.real))
            for label, concepts in made.items()
        }
        for k, pupil in enumerate(pupils)
    ]


def summed(lines: Sequence[Mapping[str, float]], size: str) -> dict[str, dict[str, float]]:
    """alone, merged -> mean gap closed whole and small, the share that is left, and its bounds."""
    table = {}
    for way in WAYS:
        whole, small = (np.array([line[label] for line in lines]) for label in (way, f"{way} {size}"))
        low, high = interval(small, whole)
        means = {"whole": float(whole.mean()), "small": float(small.mean())}
        table[way] = {**means, "kept": means["small"] / means["whole"], "low": low, "high": high}
    return table


@click.command()
@click.option("--registry", "home", type=click.Path(path_type=Path), help="Where learned concepts are kept.")
@click.option("--pairs", default=PAIRS, show_default=True, help="Merges of two unseen subjects.")
@click.option("--size", default="tiny", show_default=True, type=click.Choice(SIZES))
@click.option("--seeds", default=SEEDS, show_default=True, help="Pictures of each prompt.")
@click.option("--drawing", default=STEPS, show_default=True, help="Denoising steps of a picture.")
def main(home: Path | None, pairs: int, size: str, seeds: int, drawing: int) -> None:
    use_own_cores()
    home = home or Path(tempfile.mkdtemp())
    kept = home / "storage_merges.json"
    lines: dict[str, list[dict[str, float]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    studio = Studio(bases.load(), seeds, drawing)
    keys = [f"{pair} {size} {seeds} {drawing}" for pair in range(pairs)]
    with Registry(home) as registry:
        for pair, key in enumerate(keys):
            if key not in lines:
                lines[key] = gaps_of(studio, registry, (2 * pair, 2 * pair + 1), size)
                kept.write_text(json.dumps(lines))
            for line in lines[key]:
                print(f"pair {pair}: {briefly(line)}", flush=True)
    table = summed([line for key in keys for line in lines[key]], size)
    for way, figures in table.items():
        print(f"{way}: {briefly(figures)}")
    finish(
        "storage_merges",
        table,
        f"gap closed, and the share of it that {size} files keep against those of size {FULL}",
        {"merged": table["alone"]["low"]},
        table["merged"]["kept"] >= table["alone"]["low"],
        f"0..{seeds - 1}",
        trial=shortfall(pairs=(pairs, PAIRS), seeds=(seeds, SEEDS), denoising_steps=(drawing, STEPS)),
    )


if __name__ == "__main__":
    main()
