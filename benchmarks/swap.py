"""A concept on a live pipeline is exchanged for another: the time, beside unloading and loading a LoRA.

    python -m benchmarks.swap [--shape sd15|pico] [--cycles 1000]

Both roads exchange the same two concepts in the same run, on a tokenizer with as many entries as CLIP's. Then
come the cycles: at the end the base is bit-identical, and the memory has not grown.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase

from diffusers import StableDiffusionPipeline

from benchmarks import sd15
from benchmarks.report import finish, use_own_cores
from conceptkit.base.fingerprint import fingerprint_of
from conceptkit.formats.dialects import export
from conceptkit.inference.attach import attach
from tests.tiny import WORDS, pico_concept, pico_sd, state_hash, tokenizer

BAR_MS, BAR_RATIO = 20.0, 20.0
GROWTH_MB = 50.0
ROUNDS = 7
VOCABULARY = 49_408
SPECIAL = ("bos", "eos", "pad")


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Of one call, by the clock and of the processor."""
    begun, used = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - begun, time.process_time() - used


def medians_ms(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The same of many calls, in milliseconds."""
    by_clock, of_processor = zip(*times, strict=True)
    return 1000 * statistics.median(by_clock), 1000 * statistics.median(of_processor)


def fill_vocabulary(pipe: StableDiffusionPipeline) -> None:
    """Give a pipeline a tokenizer of the real size, and a token table with random rows to it."""
    dice, words, known = random.Random(0), [], len(pipe.tokenizer)
    while known + sum(map(len, words)) < VOCABULARY:
        words.append("".join(dice.choices(ascii_lowercase, k=dice.randint(4, 9))))
    pipe.tokenizer = tokenizer(f"{WORDS} {' '.join(words)}")
    special = {f"{name}_token_id": getattr(pipe.tokenizer, f"{name}_token_id") for name in SPECIAL}
    for name, value in special.items():
        setattr(pipe.text_encoder.config, name, value)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)


def main() -> None:
    """Measure both roads, then the cycles."""
    parser = argparse.ArgumentParser(description="Swap concepts on a live pipeline.")
    parser.add_argument("--shape", choices=("sd15", "pico"), default="sd15")
    parser.add_argument("--cycles", type=int, default=1000)
    asked = parser.parse_args()
    use_own_cores()
    warnings.simplefilter("ignore")
    pipe = sd15.pipeline() if asked.shape == "sd15" else pico_sd()
    fill_vocabulary(pipe)
    concepts = [pico_concept(pipe, name, rank=4, seed=i) for i, name in enumerate(("my_dog", "my_cat"))]
    before, known = state_hash(pipe.unet), fingerprint_of(pipe)
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / concept.name for concept in concepts]
        for folder, concept in zip(folders, concepts, strict=True):
            export(concept, folder)
        pipe.load_lora_weights(str(folders[1]))
        for i in range(ROUNDS):

            def exchange(folder: Path = folders[i % 2]) -> None:
                pipe.unload_lora_weights()
                pipe.load_lora_weights(str(folder))

            theirs.append(seconds(exchange))
        pipe.unload_lora_weights()
    attachment = attach(pipe, concepts[1])
    for i in range(3 * ROUNDS):
        old, new = concepts[(i + 1) % 2], concepts[i % 2]
        ours.append(seconds(lambda old=old, new=new: attachment.swap(old.name, new)))
    names = [concept.name for concept in concepts]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(asked.cycles):
        at = names.index(attachment.concepts[0])
        attachment.swap(names[at], concepts[1 - at])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    attachment.detach()
    same = state_hash(pipe.unet) == before and fingerprint_of(pipe) == known
    (ms, cpu_ms), (load_ms, load_cpu_ms) = medians_ms(ours), medians_ms(theirs)
    ratio = load_ms / ms
    full = asked.shape == "sd15" and asked.cycles >= 1000
    finish(
        "swap",
        round(ms, 2),
        "ms",
        BAR_MS,
        ms <= BAR_MS and ratio >= BAR_RATIO and same and grown <= GROWTH_MB,
        [0],
        trial="" if full else f"{asked.cycles} cycles on {asked.shape}",
        times_faster=round(ratio, 1),
        bar_times_faster=BAR_RATIO,
        cpu_ms=round(cpu_ms, 2),
        load_ms=round(load_ms, 1),
        load_cpu_ms=round(load_cpu_ms, 1),
        bit_identical=same,
        grown_megabytes=round(grown, 1),
    )


if __name__ == "__main__":
    main()
