"""`conceptkit bases`: the families of bases, and what works on each."""

import click

from conceptkit.cli.shared_options import debug_option, echo_json, json_option
from conceptkit.cli.terminal import echo_table


@click.command()
@json_option
@debug_option
def bases(as_json: bool) -> None:
    """List the families of bases and what works on each.

    Any diffusers pipeline of one of them is a base: give its folder or hub id as --base. SIZE is the side of
    its pictures in pixels, and WEIGHTS what its UNet or transformer takes in 16 bits; text encoders come on
    top. REGIONS go by attention, or by the layout of one frame. EXPORT says whether plain diffusers loads a
    LoRA into it.

    \b
    Example:
      conceptkit bases
    """
    from conceptkit.base.families import FAMILIES, methods_of

    if as_json:
        echo_json(
            [
                {
                    "name": row.name,
                    "bases": row.bases,
                    "denoiser": row.denoiser,
                    "pixels": row.pixels,
                    "gigabytes": round(2 * row.parameters, 2),
                    "methods": methods_of(row),
                    "merge": True,
                    "regions": True,
                    "auto_regions": row.has_unet,
                    "export": row.lora_loader,
                }
                for row in FAMILIES.values()
            ]
        )
        return
    head = ("NAME", "BASES", "SIZE", "WEIGHTS", "MERGE", "REGIONS", "EXPORT", "LEARN")
    rows = [
        (
            row.name,
            row.bases or "-",
            str(row.pixels),
            f"{2 * row.parameters:.1f} GB" if row.parameters >= 0.05 else f"{2000 * row.parameters:.0f} MB",
            "yes",
            "yes" if row.has_unet else "in layouts",
            "yes" if row.lora_loader else "no",
            "all methods" if "vico" in methods_of(row) else "all but vico",
        )
        for row in FAMILIES.values()
    ]
    echo_table([head, *rows])
