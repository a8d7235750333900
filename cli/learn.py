"""`conceptkit add`: photos become a concept."""

from pathlib import Path

import click

from conceptkit.cli.options import base_option, debug_option, free_path, note, out_option, wrote
from conceptkit.cli.progress import bar


@click.command()
@click.argument("name")
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--class", "noun", metavar="NOUN", help="What kind of thing it is, for example dog.")
@base_option
@click.option("--new-version", is_flag=True, help="Keep what NAME has learned before and add a version.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same machine: same bytes.")
@click.option("--steps", type=click.IntRange(1), help="Training steps.  [default: the recipe's]")
@click.option("--rank", type=click.IntRange(0), help="Rank of the delta; 0 is full.  [default: the recipe's]")
@out_option("pictures", "Where the preview picture goes.")
@debug_option
def add(
    name: str,
    photos: tuple[Path, ...],
    noun: str | None,
    base: str | None,
    new_version: bool,
    seed: int,
    steps: int | None,
    rank: int | None,
    out: Path,
) -> None:
    """Learn a thing from photos.

    PHOTOS are files or folders; what is on them is kept under NAME.

    \b
    Example:
      conceptkit add my_dog ./photos --class dog
    """
    from conceptkit.registry.store import Registry

    with Registry() as registry, bar(f"Learning {name}") as tick:
        registry.check_free(name, new_version=new_version)

        from conceptkit import images
        from conceptkit import learn as library

        learned = library.add(
            name,
            photos,
            noun=noun,
            base=base or "storybook",
            registry=registry,
            new_version=new_version,
            seed=seed,
            steps=steps,
            rank=rank,
            progress=tick,
        )
    for sentence in learned.notices:
        note(sentence)
    click.echo(
        f"Learned {learned.entry.ref} in {learned.seconds:.0f} s; it takes {learned.bytes / 1000:,.1f} kB."
    )
    path = free_path(out, name, ".png")
    images.save_png(learned.preview, path, concepts=[learned.entry.ref], seed=seed)
    wrote(path)
