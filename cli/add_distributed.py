"""`conceptkit add` in several processes: `accelerate launch -m conceptkit.cli.add_distributed NAME`."""

import os
import sys
import tempfile
from contextlib import nullcontext, redirect_stdout
from io import StringIO

from conceptkit.cli.main import main


def add(words: list[str]) -> None:
    """Run `conceptkit add WORDS...`; of several processes only the first speaks and keeps its previews."""
    first = not int(os.environ.get("RANK", "0"))
    with (
        tempfile.TemporaryDirectory() as thrown_away,
        nullcontext() if first else redirect_stdout(StringIO()),
    ):
        out = [] if first else ["--out", thrown_away]
        main(["add", *words, *out], prog_name="conceptkit")


if __name__ == "__main__":
    add(sys.argv[1:])
