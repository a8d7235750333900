"""`conceptkit add` in several processes: `accelerate launch -m conceptkit.cli.add_distributed NAME`."""

import os
import sys
import tempfile

if __name__ == "__main__":
    from conceptkit.cli.main import main

    words = ["add", *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as aside:
        if int(os.environ.get("RANK", "0")):  # one process speaks and draws previews for all
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            words += ["--out", aside]
        main(words, prog_name="conceptkit")
