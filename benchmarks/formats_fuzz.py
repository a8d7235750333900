"""Spoiled files of other programs: each ends in one sentence, or comes in and can be stored and read.

    python -m benchmarks.formats_fuzz [--count 10000] [--seed 0]

Files of every kind that is read, on a pipeline in miniature. Counted as failures: any exception but
ConceptError, what comes in and cannot be stored and read again, a concept that has a map the base lacks.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save, save_file

from benchmarks.report import finish, use_own_cores
from conceptkit.base.pipeline import Base, of
from conceptkit.concepts.concept import Concept
from conceptkit.errors import ConceptError
from conceptkit.formats import kohya, peft
from conceptkit.formats.tensor_files import read_tensors
from conceptkit.registry import concept_validation
from conceptkit.registry.library.describe import describe
from conceptkit.workflows.import_file import ImportOptions, as_concept
from tests import foreign
from tests.mutate_files import spoil_file
from tests.tiny import pico_concept, pico_sd


def seeds(folder: Path) -> dict[str, bytes]:
    """A file of every kind, by a name with its ending."""
    pipe = pico_sd()
    made = {
        "kohya.safetensors": foreign.lora(pipe)[0],
        "locon.safetensors": foreign.lora(pipe, convolution=True)[0],
        "peft.safetensors": foreign.lora(pipe, "peft")[0],
        "old.safetensors": foreign.lora(pipe, "old")[0],
        "loha.safetensors": foreign.loha(pipe)[0],
        "lokr.safetensors": foreign.lokr(pipe)[0],
        "dora.safetensors": foreign.dora(pipe)[0],
        "toy.safetensors": {"emb_params": torch.ones(2, 32)},
    }
    found = {name: save({key: t.contiguous() for key, t in held.items()}) for name, held in made.items()}
    for name, held in (
        ("kohya.bin", foreign.lora(pipe)[0]),
        ("toy.pt", {"string_to_param": {"*": torch.ones(1, 32)}}),
    ):
        torch.save(held, folder / name)
        found[name] = (folder / name).read_bytes()
    concept = pico_concept(pipe, text_rank=1)
    found["ours_kohya.safetensors"] = kohya.lora(concept, "my_dog")
    found["ours_peft.safetensors"] = peft.lora(concept)
    save_file({"<x>": torch.ones(1, 32)}, folder / "single.safetensors")
    found["single.safetensors"] = (folder / "single.safetensors").read_bytes()
    return found


def one_case(base: Base, maps: set[str], file: Path) -> str:
    """ "read" or "refused". Raises whatever is a failure."""
    describe(file)
    try:
        concept, _ = as_concept(read_tensors(file), base, ImportOptions(name="spoiled"))
    except ConceptError as error:
        text = str(error)
        assert text and "\n" not in text, "a refusal that is no one sentence"
        return "refused"
    data = concept.to_bytes()
    concept_validation.check(data)
    Concept.from_bytes(data)
    assert set(concept.delta) <= maps, "maps that the base lacks"
    return "read"


def main() -> None:
    """Run the cases and print what became of them."""
    parser = argparse.ArgumentParser(description="Spoil files of other programs and read them.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    use_own_cores()
    warnings.simplefilter("ignore")
    base, dice, fates, failures = of(pico_sd()), random.Random(asked.seed), Counter[str](), []
    from conceptkit.formats.module_index import index_of

    maps, begun = set(index_of(base).maps), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = seeds(folder)
        for number in range(asked.count):
            name = dice.choice(sorted(given))
            data = spoil_file(given[name], dice)
            file = folder / f"case{Path(name).suffix}"
            file.write_bytes(data)
            try:
                fates[one_case(base, maps, file)] += 1
            except Exception as error:
                fates["failed"] += 1
                failures.append(f"case {number} of {name}: {type(error).__name__}: {str(error)[:200]}")
                if len(failures) <= 5:
                    traceback.print_exc(limit=-4)
    print("\n".join(failures[:20]))
    finish(
        "formats_fuzz",
        fates["failed"],
        "failures",
        0,
        fates["failed"] == 0,
        [asked.seed],
        trial="" if asked.count >= 10_000 else f"{asked.count} cases of 10,000",
        read=fates["read"],
        refused=fates["refused"],
        seconds=round(time.perf_counter() - begun, 1),
    )
    sys.exit(fates["failed"] > 0)


if __name__ == "__main__":
    main()
