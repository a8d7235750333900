"""Write the golden files of today's conceptkit: `python -m tests.golden.write`.

They are written once, by a version whose numbers are right, and kept: another version compares with them and
never writes them anew. Photos and masks lie in the folder beforehand.
"""

import argparse
import hashlib
import io
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.golden import api, compare
from tests.golden.cases import (
    CASES,
    EXPORTS,
    HOME,
    MERGED,
    MERGED_OF,
    MERGES,
    PICTURES,
    Case,
    Merging,
    Picture,
)
from tests.golden.files import DATA, Golden, export_tensors

BUNDLED = ("my_dog", MERGED, "looked")


def main() -> None:
    """Write all golden files into a folder that holds photos and no golden.json yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA, help="A folder that has photos/ and masks/.")
    out = parser.parse_args().out
    if (out / "golden.json").exists():
        parser.error(f"{out} holds golden files, which are never written anew; copy its photos elsewhere")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    golden: dict[str, Any] = {"machine": compare.machine()}
    golden["concepts"] = dict(entry for case in CASES for entry in _learned(case, out))
    files = Golden(out, golden)
    with tempfile.TemporaryDirectory() as home:
        golden["merges"] = dict(_merged(merging, files, Path(home)) for merging in MERGES)
        golden["pictures"] = dict(_drawn(picture, files, Path(home)) for picture in PICTURES)
    golden["exports"] = dict(_exported(name, files) for name in EXPORTS)
    golden["home"] = _home(files)
    (out / "golden.json").write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"Wrote {out}, {size / 1e6:.2f} MB")


def _learned(case: Case, out: Path) -> list[tuple[str, Any]]:
    """The entries of golden.json about what a case learns, its files written."""
    found = []
    with tempfile.TemporaryDirectory() as home:
        for name, concept in api.learn(case, out / "photos", Path(home)).items():
            entry = _kept(concept, out / "concepts" / case.name / f"{name}.safetensors")
            found.append((f"{case.name}/{name}", entry | {"learned": compare.shas(api.tensors(concept))}))
    print(f"learned {case.name}", flush=True)
    return found


def _kept(concept: Any, file: Path) -> dict[str, Any]:
    data = api.written(concept)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    stored = api.read(data)
    return {
        "about": api.about(stored),
        "stored": compare.digest(api.tensors(stored)),
        "bytes": hashlib.sha256(data).hexdigest(),
    }


def _merged(merging: Merging, files: Golden, home: Path) -> tuple[str, Any]:
    concept, figures = files.merged(merging, home)
    entry = _kept(concept, files.path(f"merges/{merging.name}"))
    report = {name: numbers.tolist() for name, numbers in figures.items()}
    return merging.name, entry | {"report": _plain(report), "report_sha": compare.shas(figures)}


def _plain(report: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """JSON has no NaN."""
    return {name: [None if x != x else x for x in numbers] for name, numbers in report.items()}


def _drawn(picture: Picture, files: Golden, home: Path) -> tuple[str, Any]:
    drawn = files.drawn(picture, home)
    file = files.root / "drawn" / f"{picture.name}.png"
    file.parent.mkdir(exist_ok=True)
    drawn.save(file, optimize=True)
    return picture.name, {"pixels": compare.pixel_sha(drawn)}


def _exported(name: str, files: Golden) -> tuple[str, Any]:
    folder = files.root / "export" / name
    api.export(files.concept(EXPORTS[name]), folder)
    tensors, settings = export_tensors(folder)
    return name, {"tensors": compare.digest(tensors), "settings": settings}


def _home(files: Golden) -> dict[str, Any]:
    """A registry home with versions, labels, a picture and a merge; and a bundle of most of it."""
    home = files.root / "home"
    for name, versions in HOME.items():
        for source in versions:
            api.keep(home, {name: files.path(source).read_bytes()})
    concept, _ = api.merge(MERGED_OF, "constrained", None, "pico", home)
    api.keep(home, {MERGED: api.written(concept)})
    png = io.BytesIO()
    files.picture("custom-alone").save(png, "PNG")
    api.label(home, "my_dog", tag="pets", note="Learned from\nthree photos.", preview=png.getvalue())
    shutil.rmtree(home / "checkpoints", ignore_errors=True)
    api.send(home, BUNDLED, files.root / "concepts.bundle")
    with tempfile.TemporaryDirectory() as fresh:
        api.receive(Path(fresh), files.root / "concepts.bundle")
        received = api.contents(Path(fresh))
    merged = compare.digest(api.tensors(api.read(api.stored(home, MERGED))))
    return {"contents": api.contents(home), "received": received, "merged": merged}


if __name__ == "__main__":
    main()
