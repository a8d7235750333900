"""`accelerate launch -m conceptkit.learn NAME PHOTOS...`: `conceptkit add` in several processes."""

import os
import sys

if __name__ == "__main__":
    if int(os.environ.get("RANK", "0")):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # one process speaks for all
    from conceptkit.cli.main import main

    main(["add", *sys.argv[1:]], prog_name="conceptkit")
