"""`conceptkit import`: bundles of other people, and the files of other programs."""

import json
from pathlib import Path
from typing import Any

import click

from conceptkit.cli.library import scan_folder
from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import base_option, debug_option, echo_json, json_option, note
from conceptkit.cli.terminal import echo
from conceptkit.errors import BadBlob, ConceptError, UnknownConcept

FOREIGN = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of other programs' files, as far as they are not concepts of ours."""

require_signed_option = click.option(
    "--require-signed", is_flag=True, help="Refuse what is not signed by a key that you trust."
)
take_option = click.option(
    "--take", is_flag=True, help="Let names of yours mean what comes in under them from now on."
)


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@require_signed_option
@take_option
@base_option
@click.option("--name", metavar="NAME", help="Of one file of another program: what the concept is called.")
@click.option(
    "--trigger",
    metavar="TEXT",
    help="Of another program's LoRA: what its name stands for in prompts.  [default: what the file tells]",
)
@click.option("--class", "class_noun", metavar="NOUN", help="Of another program's file: what it shows.")
@click.option(
    "--gated",
    is_flag=True,
    help="Another program's LoRA acts, beside keys and values, only on prompts that say its words.",
)
@click.option("--new-version", is_flag=True, help="Of another program's file: keep both under one name.")
@json_option
@debug_option
def import_(
    files: tuple[Path, ...],
    require_signed: bool,
    take: bool,
    base: str | None,
    name: str | None,
    trigger: str | None,
    as_json: bool,
    **more: str | bool | None,
) -> None:
    """Add concepts from bundles and from other programs.

    Each FILE comes in whole or not at all. A version that you have is left alone, and what differs from yours
    becomes a version beside it; your names go on meaning what they mean, unless you say --take. Of other
    programs it reads LoRA, LoCon, LoHa, LoKr and DoRA in the keys of diffusers, PEFT and kohya, Custom
    Diffusion, and embeddings. They are for the base that --base names. A FILE may be a name that `conceptkit
    library` lists; a folder of many files is scanned, and they stay there.

    \b
    Example:
      conceptkit import ours.bundle
      conceptkit import ink.safetensors --base ./sd15 --trigger "ink drawing"
    """
    foreign = {"base": base, "name": name, "trigger": trigger, **more}
    if len(files) > 1 and (name or trigger):
        raise click.UsageError("--name and --trigger are for one FILE; import the others by themselves.")
    done: list[dict[str, Any]] = []
    try:
        for file in map(_located, files):
            if is_foreign(file):
                done += _foreign(file, foreign, as_json)
            else:
                _refuse_options(file, foreign)
                done.append(_ours(file, require_signed, take, as_json))
    except ConceptError as error:
        if as_json:
            echo_json([*done, {"file": str(files[min(len(done), len(files) - 1)]), "error": str(error)}])
        raise
    if as_json:
        echo_json(done)


def is_foreign(path: Path) -> bool:
    """Whether a file is another program's, going by its ending and by the header of concepts of ours."""
    if path.is_dir():
        return True
    if path.suffix.lower() not in FOREIGN or not path.is_file():
        return False
    if path.suffix.lower() != ".safetensors":
        return True
    from conceptkit.registry import concept_header
    from conceptkit.registry.sources import Source

    try:
        with path.open("rb") as handle, Source.part_of(handle, 0, path.stat().st_size).open() as reader:
            metadata = json.loads(concept_header.take(reader)).get("__metadata__") or {}
        return "format" not in json.loads(metadata.get("conceptkit") or "{}")
    except (BadBlob, ValueError, AttributeError, TypeError, RecursionError):
        return True


def _located(path: Path) -> Path:
    """The path itself, or that of a file that a scan found under this name or hash."""
    if path.exists() or len(path.parts) != 1 or path.suffix.lower() == ".bundle":
        return path
    from conceptkit.registry.library.files import FILE, Library
    from conceptkit.registry.paths import home

    if not (home() / FILE).is_file():
        return path
    with Library() as library:
        try:
            return library.get(str(path)).path
        except UnknownConcept:
            return path


def _ours(file: Path, require_signed: bool, take: bool, as_json: bool) -> dict[str, Any]:
    from conceptkit.registry.sharing import exchange
    from conceptkit.registry.store import Registry

    with Registry() as registry, bar("Importing") as tick:
        one = exchange.import_file(registry, file, require_signed=require_signed, take=take, progress=tick)
    if not as_json:
        for arrival in one.arrivals:
            echo(arrival.sentence())
        if one.signer and one.signer.trusted:
            echo(one.signer.sentence())
        elif one.signer:
            note(one.signer.sentence())
    return one.to_json()


def _foreign(file: Path, asked: dict[str, Any], as_json: bool) -> list[dict[str, Any]]:
    from conceptkit.registry.store import Registry

    if file.is_dir():
        from conceptkit.formats.tensor_files import is_concept_folder

        if not is_concept_folder(file):
            scan_folder(file, as_json=False)
            note(
                "They stay where they are: `conceptkit library` lists them, and `conceptkit import NAME` "
                "takes one in."
            )
            return [{"folder": str(file)}]
    from conceptkit.workflows.import_file import import_file

    with Registry() as registry, bar("Importing"):
        one = import_file(file, registry=registry, **asked)
    assert one.entry is not None
    if not as_json:
        kinds = one.concept.recipe.get("kind", "concept")
        words = " and ".join(f"{word} = {text}" for word, text in one.concept.words.items())
        echo(f"Added {one.entry.ref} ({kinds}), {len(one.concept.delta)} maps; in prompts {words}.")
    for sentence in one.notices:
        note(sentence)
    return [{"file": str(file), "concept": one.entry.ref, "notices": list(one.notices)}]


def _refuse_options(file: Path, asked: dict[str, Any]) -> None:
    given = [f"--{key.replace('_', '-')}" for key, value in asked.items() if value]
    if given:
        names = ", ".join(given).replace("--class-noun", "--class")
        raise click.UsageError(f"{file} is conceptkit's own, and {names} is for other programs' files.")
