"""Several processes with several threads on one registry: a short run of the benchmark's mix."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, sys
from pathlib import Path
from benchmarks.registry_concurrency import measure
print(json.dumps(measure(Path(sys.argv[1]), 4, 2.0, 0, threads=2)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_nothing_is_lost_and_no_reader_waits(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "home")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["errors"] == found["lost_updates"] == found["problems"] == []
    assert found["reader_waits"] == 0
    assert {"add", "second", "search", "load", "list"} <= set(found["operations"])
