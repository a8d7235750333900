"""`conceptkit verify`, `gc`, `stats`, `backup`, `restore`, `rebuild`: upkeep of the registry. No torch."""

from pathlib import Path

import click

from conceptkit.cli.listing import counted, size
from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import debug_option, echo_json, json_option, note, wrote
from conceptkit.cli.terminal import TEXT, VALUE, clip, echo, echo_table
from conceptkit.renamed import method_today

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@json_option
@debug_option
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Check every stored byte and every reference.

    Exit code 1 when something is wrong.

    \b
    Example:
      conceptkit verify
    """
    from conceptkit.registry import maintenance
    from conceptkit.registry.store import Registry

    with Registry() as registry, bar("Verifying") as tick:
        found = maintenance.verify(registry, tick)
    if as_json:
        echo_json(found.to_json())
    else:
        for problem in found.problems:
            echo(problem)
        state = f"{len(found.problems)} problems" if found.problems else "All is whole"
        echo(f"{state}: {found.blobs:,} files, {size(found.bytes)}.")
        for sentence in found.strange:
            note(sentence)
        if found.checkpoints:
            echo(f"{found.checkpoints:,} checkpoints are of learning that was stopped and can go on.")
        if found.orphans or found.unfinished:
            echo(
                f"{found.orphans:,} files belong to nothing and {found.unfinished:,} are unfinished: "
                "`conceptkit gc` shows them."
            )
    if found.problems:
        ctx.exit(1)


@click.command()
@click.option("--yes", is_flag=True, help="Do it; without it nothing is changed.")
@json_option
@debug_option
def gc(yes: bool, as_json: bool) -> None:
    """Delete what belongs to nothing; pack small files.

    Without --yes it only says what there is.

    What `conceptkit rm` put into the trash is deleted too. Files that an index in the home's backups folder
    names are kept. Small files that an earlier conceptkit wrote one by one are packed into one.

    \b
    Example:
      conceptkit gc --yes
    """
    from conceptkit.registry import maintenance, odd_files
    from conceptkit.registry.sharing import trash
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        found = maintenance.gc(registry, delete=yes)
        thrown, thrown_bytes = trash.empty(registry.home, delete=yes)
        kept = maintenance.aside(registry.home)
    if as_json:
        echo_json(found.to_json() | {"trash": thrown, "trash_bytes": thrown_bytes})
        return
    done = "Deleted" if yes else "Would delete"
    if yes and found.unreadable and found.blobs:
        note(
            f"Kept {found.blobs:,} files that belong to nothing, because {found.unreadable[0]} is damaged "
            "and may name them: move it elsewhere when you need no more of it, and run gc again."
        )
    else:
        echo(f"{done} {found.blobs:,} files that belong to nothing, {size(found.bytes)}.")
    if found.unfinished:
        echo(f"{found.unfinished:,} files are unfinished; those of the last day may still be written.")
    if found.old:
        echo(
            f"{done} {found.old:,} files that were left unfinished, or checkpoints of long ago, "
            f"{size(found.old_bytes)}."
        )
    if found.checkpoints:
        names = ", ".join(clip(name, VALUE) for name in found.checkpoints[:5])
        more = f" and {len(found.checkpoints) - 5:,} more" if len(found.checkpoints) > 5 else ""
        echo(
            f"Kept checkpoints of learning that was stopped and can go on ({names}{more}), "
            f"{size(found.checkpoint_bytes)}: `conceptkit add NAME --resume` goes on, and gc takes them "
            f"{odd_files.CHECKPOINTS_KEPT / odd_files.DAY:.0f} days after the last step."
        )
    if not yes and found.concepts:
        echo(
            f"{found.concepts:,} of them are concepts, perhaps of an index that was lost: look before --yes."
        )
    if thrown:
        echo(f"{done} {counted(thrown, 'removal')} in the trash, {size(thrown_bytes)}.")
    if found.packed:
        echo(f"{'Packed' if yes else 'Would pack'} {counted(found.packed, 'small file')} into one.")
    if found.freed:
        echo(f"Gave back {size(found.freed)} that removed small files took in it.")
    if not yes and (found.blobs or found.old or thrown or found.packed):
        echo("Run it again with --yes to do that.")
    if kept:
        echo(f"Kept what {len(kept)} backups in {kept[0].parent} name.")


@click.command()
@json_option
@debug_option
def stats(as_json: bool) -> None:
    """Count what is in the registry.

    \b
    Example:
      conceptkit stats
    """
    from conceptkit.registry import maintenance
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        found = maintenance.stats(registry)
    found["method"] = {(method_today(what) or what): count for what, count in found["method"].items()}
    if as_json:
        echo_json(found)
        return
    titles = {"noun": "by class", "base": "by base", "method": "by method"}
    rows = []
    for key, value in found.items():
        if key == "bytes":
            rows += [(f"bytes, {what}", size(count)) for what, count in value.items()]
        elif isinstance(value, dict):
            rows += [
                (
                    titles[key],
                    ", ".join(f"{clip(what, TEXT)} {count:,}" for what, count in value.items()) or "-",
                )
            ]
        else:
            rows.append((key, f"{value:,}" if isinstance(value, int) else value))
    echo_table(rows, VALUE)


@click.command()
@click.argument("file", type=FILE, required=False)
@json_option
@debug_option
def backup(file: Path | None, as_json: bool) -> None:
    """Write the index to a file, while others work on.

    Names, versions, tags, notes and history are in it; the stored bytes are not. Without FILE it goes to the
    backups folder of the home.

    \b
    Example:
      conceptkit backup my_concepts.db
    """
    from conceptkit.registry import backup as library
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        path = library.backup(registry, file)
    if as_json:
        echo_json({"file": str(path)})
    else:
        wrote(path)


@click.command()
@click.argument("file", type=FILE)
@json_option
@debug_option
def restore(file: Path, as_json: bool) -> None:
    """Take the index back from a backup.

    The index that is there now is kept in the backups folder of the home.

    \b
    Example:
      conceptkit restore my_concepts.db
    """
    from conceptkit.registry import backup as library
    from conceptkit.registry import paths

    found = library.restore(paths.home(), file)
    if as_json:
        echo_json(found.to_json())
        return
    echo(f"Restored an index of {found.concepts:,} concepts.")
    if found.before:
        echo(f"The one before is kept as {found.before}")
    if found.missing:
        note(f"{found.missing:,} files it names have been removed since: `conceptkit verify` says which.")


@click.command()
@click.option("--backup", "file", type=FILE, metavar="FILE", help="Begin with this backup of the index.")
@json_option
@debug_option
def rebuild(file: Path | None, as_json: bool) -> None:
    """Make a lost or damaged index anew.

    Everything that the stored concepts say of themselves comes back. A damaged index is kept in the backups
    folder of the home. Stop other programs that use the registry first.

    \b
    Example:
      conceptkit rebuild --backup my_concepts.db
    """
    from conceptkit.registry import backup as library
    from conceptkit.registry import paths

    with bar("Rebuilding") as tick:
        found = library.rebuild(paths.home(), file, tick)
    if as_json:
        echo_json(found.to_json())
        return
    if found.packed is not None:
        echo(
            f"Made the file of small blobs anew with {found.packed.blobs:,} that are whole; "
            f"the damaged one is kept as {found.packed.kept}"
        )
    if found.whole:
        echo(f"The index is readable, with {found.names:,} concepts; its search was made anew.")
        if found.missing:
            note(f"{found.missing:,} files it names are not there: `conceptkit verify` says which.")
        return
    if found.rows:
        echo(f"Kept {found.rows:,} versions whose rows could be read, and what rows say of them.")
    if found.versions or not found.rows:
        echo(f"Brought back {found.versions:,} versions of {found.names:,} concepts from their own headers.")
        echo(
            f"Not in the headers, and lost since {'that' if file else 'the last'} backup: names given by "
            "rename, the numbers of versions (given again by age), tags, notes, favourites, history and "
            "previews."
        )
    if found.others:
        echo(f"{found.others:,} files are no concepts (pictures, prior sets, statistics).")
    if found.bad:
        echo(f"{found.bad:,} concepts have a name that is not allowed, and stay out.")
    if found.before:
        echo(f"The index before is kept as {found.before}")
