"""`conceptkit tokens`: words of a base's vocabulary that mean next to nothing to it."""

import click

from conceptkit.cli.shared_options import base_option, debug_option, echo_json, json_option


@click.command()
@base_option
@click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@json_option
@debug_option
def tokens(base: str | None, count: int, as_json: bool) -> None:
    """List rare tokens of a base.

    Words of up to three letters that are one token, the rarest first: DreamBooth gives one of them a meaning.
    RARITY is the share of the vocabulary that is commoner, SEEN how often the base's captions have the word.

    \b
    Example:
      conceptkit tokens -n 10
    """
    from dataclasses import asdict

    from conceptkit.base import pipeline as bases
    from conceptkit.base.rare_tokens import candidates
    from conceptkit.cli.terminal import echo_table
    from conceptkit.features.captions import captions

    loaded = bases.load(base or bases.STORYBOOK)
    found = candidates(loaded.pipe, captions(loaded.family.name))[:count]
    if as_json:
        echo_json([asdict(one) for one in found])
        return
    rows = [(one.text, ", ".join(map(str, one.ids)), f"{one.rarity:.1%}", str(one.seen)) for one in found]
    echo_table([("TOKEN", "ID", "RARITY", "SEEN"), *rows])
