"""What a real base costs the first time: captions read, a concept merged, a hundred concepts composed.

    python -m benchmarks.first_use [--part captions|merge|hundred|fidelity] [--threads 2]

At Stable Diffusion 1.5's shape, text encoder and vocabulary, with random weights. Large text encoders read a
sample of the padding (`features.prompt_sample`); `fidelity` measures on the storybook base what that changes.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.report import finish, use_own_cores
from benchmarks.sd15 import TEXT, UNET
from conceptkit.base import attention
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.features import caption_statistics, captions, prompt_sample
from conceptkit.merging import compose as merging
from conceptkit.merging import report
from conceptkit.registry.store import Registry
from conceptkit.rng import seeded
from tests import tiny

BARS = {"captions": 15.0, "merge": 1.0, "hundred": 60.0}
"""Seconds on two cores."""
PARTS = (*BARS, "fidelity")
VOCABULARY = 49408
NOUNS = ("dog", "cat", "car", "house", "chair", "bird", "boat", "robot", "flower", "candle")
MANY, REPEATS = 100, 5
STORED = Path("tests/data/v1/concepts")
PAIRS = tuple(
    (f"{method}/my_dog", "storybook-gate/moongate")
    for method in ("storybook", "storybook-dreambooth", "storybook-custom-diffusion")
)


@dataclass
class Spent:
    """Seconds by the clock and of all cores together."""

    wall: float
    cpu: float

    @classmethod
    def of(cls, action: Callable[[], Any]) -> Spent:
        """Of one call."""
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)

    def __str__(self) -> str:
        return f"{self.wall:.2f} s ({self.cpu:.2f} s of computing)"


def text_pipeline() -> StableDiffusionPipeline:
    """All that reads text at full shape and vocabulary; of the UNet only the maps that do."""
    real = dict.fromkeys([*" ".join(captions.captions("sd15")).split(), *NOUNS])
    made = (
        "".join(letters) for letters in product("bcdfghklm", "aeiou", "nprst", "aeiou", "lmnrst", "aeiou")
    )
    tokenizer = tiny.tokenizer(" ".join([*real, *islice(made, 39_000)]))
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with seeded(0, torch.device("cpu")):
        text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **special, **TEXT))
        with torch.device("meta"):
            unet = UNet2DConditionModel(**UNET)
        for linear in attention.kv_maps(unet).values():
            linear.weight = nn.Parameter(torch.randn(linear.weight.shape) * 0.02)
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text.eval(),
        unet=unet.eval(),
        vae=None,
        scheduler=tiny.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def concepts(base: bases.Base, count: int) -> list[Concept]:
    """Each of three vectors and of rank 3, as the default method learns them, without rows yet."""
    made = []
    for number in range(count):
        make = torch.Generator().manual_seed(number)
        name, noun = f"thing{number}", NOUNS[number % len(NOUNS)]
        down = torch.randn(3, base.width, generator=make) / base.width
        made.append(
            Concept(
                name=name,
                kind="subject",
                noun=noun,
                base=base.fingerprint,
                base_name=base.name,
                tokens={f"<{name}>": (0.02 * torch.randn(3, base.width, generator=make),)},
                words={name: f"<{name}> {noun}"},
                delta={key: (torch.randn(o, 3, generator=make), down) for key, o in base.sizes.items()},
                recipe={},
                provenance={},
            )
        )
    return made


def of_captions(base: bases.Base, registry: Registry) -> Spent:
    """The statistics of a base that was never used before."""
    return Spent.of(lambda: caption_statistics.statistics_of(base, registry))


def of_merge(base: bases.Base, registry: Registry, made: list[Concept]) -> Spent:
    """The median of merges of a concept that was merged before with one that was not."""
    merging.compose(made[0], made[1], base=base, registry=registry)
    found = [
        Spent.of(lambda other=other: merging.compose(made[0], other, base=base, registry=registry))
        for other in made[2 : 2 + REPEATS]
    ]
    return Spent(*(float(np.median([getattr(one, name) for one in found])) for name in ("wall", "cpu")))


def of_many(base: bases.Base, registry: Registry, made: list[Concept]) -> Spent:
    """All concepts in one merge, none of which was merged before."""
    return Spent.of(lambda: merging.compose(*made, base=base, registry=registry))


def fidelity(
    pairs: Sequence[tuple[str, str]] = PAIRS, methods: Sequence[str] = ("regmean", "closed-form")
) -> list[dict[str, Any]]:
    """On the storybook base: merges worked out from a sample of the padding, measured on all of it."""
    base, rows = bases.load(device="cpu"), []
    for names in pairs:
        pair = [Concept.from_bytes((STORED / f"{name}.safetensors").read_bytes()) for name in names]
        for method in methods:
            with tempfile.TemporaryDirectory() as home, Registry(Path(home)) as registry:
                whole = _measured(base, registry, pair, method)
                with mock.patch.object(prompt_sample, "LARGE", 0):
                    merge = merging.compose(*pair, base=base, registry=registry, merge_method=method)
                sampled = _measured(base, registry, pair, method, merge.concept)
            rows.append({"concepts": names, "method": method, "whole": whole, "sampled": sampled})
            print(rows[-1], flush=True)
    return rows


def _measured(
    base: bases.Base, registry: Registry, pair: list[Concept], method: str, made: Concept | None = None
) -> dict[str, float]:
    """What a report over whole prompts says of a merge: that of whole prompts, or one `made` of others."""
    plain = report.measure

    def measure(of: report.Measured, delta: Any, *more: Any) -> report.Report:
        return plain(of, delta if made is None else made.delta.only(base.sizes), *more)

    with mock.patch.object(report, "measure", measure):
        told = merging.compose(*pair, base=base, registry=registry, merge_method=method).report
    words, prompt = (
        float(np.mean([getattr(kept, name) or 0 for kept in told.kept])) for name in ("words", "prompt")
    )
    return {"words": round(words, 4), "prompt": round(prompt, 4), "captions": round(told.captions, 5)}


def matmul_gflops() -> float:
    """What plain products of matrices reach just now: on a busy machine a part of what it can do."""
    left, right = torch.randn(2048, 768), torch.randn(768, 3072)
    spent = Spent.of(lambda: [left @ right for _ in range(20)])
    return 20 * 2 * left.numel() * right.shape[1] / spent.wall / 1e9


def peak_gb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only these.")
@click.option("--many", default=MANY, show_default=True, help="Concepts in the merge of many.")
@click.option("--threads", type=int, help="[default: one for each core]")
def main(parts: tuple[str, ...], many: int, threads: int | None) -> None:
    use_own_cores()
    if threads:
        torch.set_num_threads(threads)
    asked = parts or PARTS
    spent: dict[str, Spent] = {}
    if set(asked) & set(BARS):
        base = bases.of(text_pipeline(), "sd15")
        made = concepts(base, max(many, 2 + REPEATS) if "hundred" in asked else 2 + REPEATS)
        with tempfile.TemporaryDirectory() as home, Registry(Path(home)) as registry:
            spent["captions"] = of_captions(base, registry)
            if "merge" in asked:
                spent["merge"] = of_merge(base, registry, made)
            if "hundred" in asked:
                spent["hundred"] = of_many(
                    base, registry, [one.called(f"other{i}") for i, one in enumerate(made)]
                )
    for name, one in spent.items():
        print(f"{name}: {one}, bar {BARS[name]:.0f} s", flush=True)
    told = fidelity() if "fidelity" in asked else None
    ratios = {name: one.wall / BARS[name] for name, one in spent.items()}
    trial = "" if set(asked) >= set(BARS) and many >= MANY else f"parts {', '.join(asked)}, {many} concepts"
    finish(
        "first_use",
        max(ratios.values(), default=None),
        "of the time allowed, the worst of the three",
        1.0,
        bool(ratios) and max(ratios.values()) <= 1.0,
        [0],
        trial=trial,
        seconds={name: round(one.wall, 2) for name, one in spent.items()},
        cpu_seconds={name: round(one.cpu, 2) for name, one in spent.items()},
        bars=BARS,
        peak_gb=round(peak_gb(), 2),
        matmul_gflops=round(matmul_gflops()),
        fidelity=told,
    )


if __name__ == "__main__":
    main()
