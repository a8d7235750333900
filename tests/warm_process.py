"""Processes of their own that begin with torch, diffusers and PEFT imported, and nothing of conceptkit.

One process imports them, once, and divides itself for every piece of code: importing them anew takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path

_IMPORTED = ["torch", "numpy", "safetensors.torch", "diffusers.loaders.peft", "peft"]
_IMPORTED += [f"diffusers.pipelines.{name}" for name in ("stable_diffusion", "stable_diffusion_xl", "flux")]
_FRESH = multiprocessing.get_context("forkserver")
_FRESH.set_forkserver_preload(_IMPORTED)


def run(code: str, *arguments: object, folder: Path) -> str:
    """What a process that runs the code prints; `sys.argv[1:]` are the arguments, in a folder.

    Raises AssertionError with the traceback when it fails.
    """
    with tempfile.TemporaryDirectory() as kept:
        output, words = Path(kept) / "output.txt", [str(argument) for argument in arguments]
        process = _FRESH.Process(target=_execute, args=(code, words, str(folder), str(output)))
        process.start()
        process.join()
        told = output.read_text()
    assert process.exitcode == 0, told[-4000:]
    return told


def _execute(code: str, words: list[str], folder: str, output: str) -> None:
    with open(output, "w") as told:
        sys.stdout = sys.stderr = told
        sys.argv = ["-c", *words]
        os.chdir(folder)
        try:
            exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            told.flush()
            os._exit(1)
