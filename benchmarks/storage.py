"""Concepts in few bytes: bytes of whole files, and the share of the gap that their pictures still close.

    python -m benchmarks.storage [--registry DIR] [--subjects 10] [--keep 0.99 --keep 0.95]

Results are kept in the registry's folder, subject by subject: a run that was stopped goes on.

Every figure is of a file that a fresh process has read from the disk. Beside it: what the codec costs over
the entropy of its symbols, bytes and reading time at the shapes of Stable Diffusion 1.5 and SDXL by the bits
a value that were measured here, and damaged files, which are refused in a sentence or read right.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn

from benchmarks.learn_common import SEEDS, SUBJECTS, Studio, briefly, lacking
from benchmarks.report import finish, use_own_cores
from benchmarks.taught import interval, teach, unseen
from conceptkit.base import pipeline as bases
from conceptkit.base.fingerprint import Fingerprint
from conceptkit.compression.sizes import PRESETS, SizeRequest
from conceptkit.concepts.codec import compact, symbols
from conceptkit.concepts.concept import Concept, read
from conceptkit.errors import BadBlob, NoEffect
from conceptkit.inference.generate import STEPS
from conceptkit.registry import concept_validation
from conceptkit.registry.store import Registry
from conceptkit.workflows.shrink import shrink_to
from tests.mutate import spoil_blob, spoil_bytes
from tests.test_base import SD15, SDXL

BARS: dict[str, Any] = {
    "small": {"bytes": 12_000, "kept": 0.97, "lower": 0.94},
    "tiny": {"bytes": 8_000, "kept": 0.93},
    "keys and values": 4_000,
    "codec": 1.05,
    "read_ms": 20.0,
}
AIMS = {"small": 80_000, "tiny": 8_000}
"""Bytes at the shape of Stable Diffusion 1.5."""
SHAPES: Mapping[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "sd15": (lambda: UNet2DConditionModel(**SD15), r"attn2\.to_[kv]$", (768,)),
    "sdxl": (lambda: UNet2DConditionModel(**SDXL), r"attn2\.to_[kv]$", (768, 1280)),
    "flux": (lambda: FluxTransformer2DModel(guidance_embeds=True), r"^context_embedder$", (4096,)),
}
"""The denoiser, which of its maps read text, and the widths of the text encoders whose tokens learn."""
WIDE = re.compile(r"attn[12]?\.(to_(q|k|v|out\.0)|add_[qkv]_proj|to_add_out)$")
FOLDER = "storage"
KV_RANK, WIDE_RANK, VECTORS = 3, 2, 3
SENTENCE = re.compile(r"[^\n]{1,600}")


def judged(folder: Path, seeds: int, drawing: int) -> dict[str, float]:
    """File -> gap closed by the concept in it, found out in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.storage", "--judge", str(folder)]
    command += ["--seeds", str(seeds), "--drawing", str(drawing)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def judge(folder: Path, seeds: int, drawing: int) -> dict[str, float]:
    """The same in this process; a file is named by its subject's number."""
    studio, gaps = Studio(bases.load(), seeds, drawing), {}
    files: dict[int, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        files.setdefault(int(file.name.partition("-")[0]), []).append(file)
    for number, own in files.items():
        pupil = studio.pupil(f"thing{number}", unseen(number + 1)[number], number)
        for file in own:
            concept = Concept.from_bytes(file.read_bytes())
            pictures = studio.in_places(pupil.name, concept)
            gaps[file.name] = pupil.gap(studio.likeness(pictures, pupil.real))
    return gaps


def shrunk(
    registry: Registry, name: str, wishes: Mapping[str, SizeRequest], labels: Set[str], base: bases.Base
) -> dict[str, Any]:
    """Label -> the concept at each of these sizes, and what is said to be left of it."""
    made: dict[str, Any] = {"full": (read(registry, f"{name}@1"), 1.0)} if "full" in labels else {}
    for label, wish in wishes.items():
        if label not in labels:
            continue
        try:
            one = shrink_to(f"{name}@1", wish, base=base, registry=registry)
        except NoEffect:
            continue
        made[label] = (one.concept, one.kept)
    return made


def shaped(shape: str, parts: Mapping[str, Sequence[float]], words_alone: bool = False) -> compact.Coded:
    """Numbers of a concept with that base's maps, drawn so that each part takes so many bits a value."""
    build, reads_text, widths = SHAPES[shape]
    with torch.device("meta"):
        denoiser = build()
    maps, shared = [], 0
    for name, module in sorted(denoiser.named_modules()):
        keyed = bool(re.search(reads_text, name))
        if not keyed and (words_alone or not WIDE.search(name)):
            continue
        o, d = module.weight.shape
        shared += not keyed
        maps.append(compact.MapShape(name, o, d, KV_RANK if keyed else WIDE_RANK, 0 if keyed else shared))
    layout = compact.Layout(tuple(maps), (("<thing>", tuple((VECTORS, width) for width in widths)),))
    dice = np.random.default_rng(0)

    def part_of(name: str) -> str:
        return "keys and values" if re.search(reads_text, name) else "other maps"

    owners = [part_of(m.name) for m in layout.downs() for _ in range(m.rank)]
    owners += [part_of(m.name) for m in layout.maps for _ in range(m.rank)]
    lengths = layout.lengths()
    owners += ["words"] * (len(lengths) - len(owners))
    spreads = {part: _spread(bits) for part, (_, bits) in parts.items()}
    vectors = [
        symbols.Vector(np.round(dice.laplace(size=length) * spreads[owner]).astype(np.int64), -20)
        for length, owner in zip(lengths, owners, strict=True)
    ]
    return compact.coded(layout, vectors)


def _spread(bits: float) -> float:
    """The Laplace scale whose rounded values have that entropy."""
    low, high = 1e-3, 1e4
    for _ in range(60):
        middle = (low * high) ** 0.5
        k = np.arange(1, 400)
        zero, tail = 1 - np.exp(-0.5 / middle), np.sinh(0.5 / middle) * np.exp(-k / middle)
        share = np.concatenate([[zero], np.maximum(tail, 1e-300)])
        entropy = -(share[0] * np.log2(share[0]) + 2 * (share[1:] * np.log2(share[1:])).sum())
        low, high = (low, middle) if entropy > bits else (middle, high)
    return float((low * high) ** 0.5)


def at_shape(
    shape: str, parts: Mapping[str, Sequence[float]], like: Concept, alone: bool
) -> dict[str, float]:
    """Bytes of a whole file of that shape, and milliseconds of a core to read it, of five times the least."""
    numbers = shaped(shape, parts, alone)
    base = Fingerprint("0" * 16, "1" * 16, like.base.sketch, "2" * 16, like.base.text_sketch)
    fields = {n: getattr(like, n) for n in Concept.__dataclass_fields__}
    fields |= {"base": base, "tokens": dict(numbers.tokens), "delta": numbers.delta, "coded": numbers}
    data = Concept(**fields).to_bytes()
    times = []
    for _ in range(5):
        begun = time.process_time()
        Concept.from_bytes(data)
        times.append(time.process_time() - begun)
    return {"bytes": len(data), "values": sum(numbers.layout.lengths()), "read_ms": 1000 * min(times)}


def mutated(data: bytes, count: int, seed: int = 0) -> dict[str, int]:
    """What became of so many damaged files: refused in one sentence, read right, or anything else."""
    dice, fate = random.Random(seed), {"refused": 0, "read right": 0, "wrong": 0}
    for k in range(count):
        spoiled = (spoil_bytes if k % 2 else spoil_blob)(dice, data)
        try:
            concept_validation.check(spoiled)
            fate["read right" if Concept.from_bytes(spoiled).to_bytes() == data else "wrong"] += 1
        except BadBlob as error:
            fate["refused" if SENTENCE.fullmatch(str(error)) else "wrong"] += 1
        except Exception:
            fate["wrong"] += 1
    return fate


def overhead(concept: Concept) -> float:
    """Bytes of the numbers over the entropy of what is coded: magnitudes, signs, classes and steps."""
    assert concept.coded is not None
    vectors = symbols.decode(concept.coded.numbers, concept.coded.layout.lengths())
    return 8 * len(concept.coded.numbers) / max(sum(symbols.bits(vectors)) + symbols.side_bits(vectors), 1)


@click.command()
@click.option("--registry", "home", type=click.Path(path_type=Path), help="Where learned concepts are kept.")
@click.option("--subjects", "count", default=SUBJECTS, show_default=True, help="Unseen subjects.")
@click.option("--seeds", default=SEEDS, show_default=True, help="Pictures of each prompt.")
@click.option("--drawing", default=STEPS, show_default=True, help="Denoising steps of a picture.")
@click.option(
    "--keep", "shares", multiple=True, type=float, help="Further sizes, by the share that they keep."
)
@click.option("--mutations", default=100_000, show_default=True, help="Damaged files.")
@click.option("--judge", "folder", type=click.Path(path_type=Path), hidden=True)
def main(
    home: Path | None,
    count: int,
    seeds: int,
    drawing: int,
    shares: Sequence[float],
    mutations: int,
    folder: Path | None,
) -> None:
    use_own_cores()
    if folder is not None:
        print(json.dumps(judge(folder, seeds, drawing)))
        return
    wishes = {name: SizeRequest(name) for name, share in PRESETS.items() if share}
    wishes |= {f"keep {share:g}": SizeRequest(keep=share) for share in shares}
    home = home or Path(tempfile.mkdtemp())
    lines = measured(home, count, wishes, Studio(bases.load(), seeds, drawing))
    table = {label: summed(label, lines) for label in ("full", *wishes)}
    for label, line in table.items():
        print(f"{label}: {briefly({k: v for k, v in line.items() if isinstance(v, float)})}", flush=True)
    like = Concept.from_bytes((home / FOLDER / f"{count - 1}-small.safetensors").read_bytes())
    shapes = {}
    for preset in AIMS:
        parts = table[preset]["bits"]
        for shape in SHAPES:
            shapes[f"{shape} {preset}"] = at_shape(shape, parts, like, False)
            shapes[f"{shape} {preset}, words and keys alone"] = at_shape(shape, parts, like, True)
    for shape, figures in shapes.items():
        print(f"{shape}: {briefly(figures)}", flush=True)
    fate = mutated(like.to_bytes(), mutations)
    codec = overhead(like)
    finish(
        "storage",
        table,
        "bytes, and share of the gap that whole concepts close",
        BARS,
        all(met(table, codec, shapes["sd15 small"]["read_ms"], fate)),
        f"0..{seeds - 1}",
        trial=lacking(None, count, seeds, drawing),
        codec=codec,
        aims={preset: shapes[f"sd15 {preset}"]["bytes"] <= most for preset, most in AIMS.items()},
        shapes=shapes,
        mutations=fate,
    )


def measured(
    home: Path, count: int, wishes: Mapping[str, SizeRequest], studio: Studio
) -> dict[str, dict[str, Any]]:
    """Subject's number -> label -> bytes, what is said to be left, bits by part, gap closed."""
    folder = home / FOLDER
    folder.mkdir(exist_ok=True)
    kept = folder / "results.json"
    lines: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    with Registry(home) as registry:
        for number in range(count):
            own = lines.setdefault(str(number), {})
            missing = {"full", *wishes} - own.keys()
            if not missing:
                continue
            name = teach(studio.base, studio.who, registry, number).name
            fresh = Path(tempfile.mkdtemp(dir=folder))
            for label, (concept, said) in shrunk(registry, name, wishes, missing, studio.base).items():
                file = fresh / f"{number}-{label}.safetensors"
                file.write_bytes(concept.to_bytes())
                bits = {} if concept.coded is None else compact.parts_of(concept.coded)
                own[label] = {"bytes": file.stat().st_size, "said": said, "bits": bits}
            for file, gap in judged(fresh, len(studio.seeds), studio.steps).items():
                label = file.removeprefix(f"{number}-").removesuffix(".safetensors")
                own[label]["gap"] = gap
                (fresh / file).rename(folder / file)
            fresh.rmdir()
            kept.write_text(json.dumps(lines))
            print(
                number,
                {label: (line["bytes"], round(line["gap"], 3)) for label, line in own.items()},
                flush=True,
            )
    return {str(number): lines[str(number)] for number in range(count)}


def summed(label: str, lines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the subjects of one size, with bounds of what it keeps of the gap."""
    found = [line[label] for line in lines.values()]
    own, full = (np.array([line[which]["gap"] for line in lines.values()]) for which in (label, "full"))
    parts = {part for line in found for part in line["bits"]}
    bits = {
        part: [float(np.mean([line["bits"][part][k] for line in found])) for k in (0, 1)] for part in parts
    }
    keys = bits.get("keys and values", [0.0, 0.0])
    return {
        "bytes": float(np.mean([line["bytes"] for line in found])),
        "largest": float(max(line["bytes"] for line in found)),
        "said": float(np.mean([line["said"] for line in found])),
        "keys and values": keys[0] * keys[1] / 8,
        "gap": float(own.mean()),
        "kept": float(own.mean() / full.mean()),
        "interval": interval(own, full),
        "bits": bits,
    }


def met(
    table: Mapping[str, Mapping[str, Any]], codec: float, read_ms: float, fate: Mapping[str, int]
) -> list[bool]:
    """Which of the bars are met."""
    sizes = [
        table[name]["bytes"] <= BARS[name]["bytes"] and table[name]["kept"] >= BARS[name]["kept"]
        for name in ("small", "tiny")
    ]
    return [
        *sizes,
        table["small"]["interval"][0] >= BARS["small"]["lower"],
        table["tiny"]["keys and values"] <= BARS["keys and values"],
        codec <= BARS["codec"],
        read_ms <= BARS["read_ms"],
        not fate["wrong"],
    ]


if __name__ == "__main__":
    main()
