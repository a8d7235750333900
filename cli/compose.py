"""`conceptkit compose`: concepts and a prompt become pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptkit.base.load_options import LoadOptions
from conceptkit.base.schedulers import SCHEDULERS
from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import (
    Choice,
    RowName,
    base_option,
    debug_option,
    device_option,
    dtype_option,
    force_option,
    free_path,
    note,
    offload_option,
    out_option,
    quantization_option,
    wrote,
)
from conceptkit.concepts.routing import PADDING_DELTAS
from conceptkit.files import check_new_file
from conceptkit.merging import request
from conceptkit.merging.method_table import MERGE_METHODS

if TYPE_CHECKING:
    from conceptkit.merging.report import Report


@click.command()
@click.argument("concepts", nargs=-1, required=True, metavar="NAME...")
@click.option("--prompt", required=True, help="What to draw; a concept's name is a word in it.")
@click.option("-n", "count", type=click.IntRange(1), default=1, show_default=True, help="How many pictures.")
@out_option("pictures", "Where the pictures go.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first picture.")
@click.option(
    "--merge-method",
    type=RowName(MERGE_METHODS, request.check_merge_method),
    default=request.MERGE_METHOD,
    show_default=True,
    help="How to merge; the first three are meant for use, the others for comparison.",
)
@click.option(
    "--padding-delta",
    type=Choice(PADDING_DELTAS),
    default=request.PADDING_DELTA,
    show_default=True,
    help="With --merge-method routed: which deltas the end of the prompt and its padding read.",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="NAME=WHERE",
    help="Keep a concept in a part of the picture: left, top, right-third, ..., a box x0,y0,x1,y1 in "
    "fractions, or a PNG that is white there.",
)
@click.option("--auto-regions", is_flag=True, help="Let the concepts split the picture by themselves.")
@click.option(
    "--side-by-side/--one-frame",
    default=None,
    help="Draw a wide picture with a window for each concept in the prompt, or all in one frame.  "
    "[default: one frame]",
)
@click.option(
    "--confine/--no-confine",
    default=None,
    help="In one frame, let each concept act only in its own part, where the base draws its class noun.  "
    "[default: for several concepts in one frame; on bases with a UNet only without regions]",
)
@click.option(
    "--detail/--no-detail",
    default=None,
    help="In one frame, draw each concept once more at full size and set it in.  [default: on storybook]",
)
@click.option(
    "--layout",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a picture of where each concept is, with names.",
)
@click.option(
    "--isolate-concepts/--no-isolate-concepts",
    default=None,
    help="In one frame, encode each concept's words without the other concepts, or the prompt as it is.  "
    "[default: isolate on storybook]",
)
@click.option(
    "--heatmap",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a picture of how much each concept disturbs the others.",
)
@force_option
@click.option("--save", metavar="NAME", help="Keep the merge as a concept of its own.")
@base_option
@device_option
@dtype_option
@quantization_option
@offload_option
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='Settings in TOML: scheduler = "euler", width = 768, ...; other options go before it.',
)
@click.option("--negative-prompt", metavar="TEXT", help="What to draw away from.")
@click.option("--width", type=click.IntRange(1), metavar="PIXELS", help="Width.  [default: the base's]")
@click.option("--height", type=click.IntRange(1), metavar="PIXELS", help="Height.  [default: the base's]")
@click.option(
    "--scheduler",
    type=Choice(list(SCHEDULERS)),
    help="How noise becomes a picture.  [default: the base's]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many pictures to draw at once: faster on a GPU, for more memory.",
)
@click.option(
    "--steps",
    "--num-inference-steps",
    "num_inference_steps",
    type=click.IntRange(1),
    default=25,
    show_default=True,
    help="Denoising steps.",
)
@click.option("--guidance-scale", type=float, help="Guidance scale.  [default: the base's]")
@click.option(
    "--true-cfg-scale",
    type=click.FloatRange(0),
    metavar="SCALE",
    help="Guidance away from a negative prompt on FLUX and its like, for twice the time.",
)
@click.option(
    "--pag-scale",
    type=click.FloatRange(0),
    metavar="SCALE",
    help="Scale of perturbed-attention guidance: things hold together better, for half as much time again. "
    " [default: 1.5 on storybook, else 0, which is none]",
)
@debug_option
def compose(
    concepts: tuple[str, ...],
    prompt: str,
    out: Path,
    heatmap: Path | None,
    layout: Path | None,
    force: bool,
    file: Path | None,
    **options: Any,
) -> None:
    """Draw concepts together in one picture.

    Merges the concepts NAME... and draws the prompt; one name works too. NAME:0.8 is one at 0.8 of its
    strength.

    \b
    Example:
      conceptkit compose my_dog moongate --prompt "my_dog in front of a moongate" -n 4
    """
    from conceptkit.registry.store import Registry
    from conceptkit.workflows.draw_request import DrawRequest, slug

    options = _with_file(options, file)
    base, device = options.pop("base"), options.pop("device")
    loading, others = LoadOptions.split(options)
    asked = DrawRequest(concepts, prompt, **others)
    for picture in filter(None, (heatmap, layout)):
        check_new_file(picture, force)
    with Registry() as registry:
        asked.entries(registry)  # before torch and a base are loaded

        from conceptkit.pictures.png_metadata import save_png
        from conceptkit.workflows.compose import DrawnPicture, carry_out

        def write(drawn: DrawnPicture) -> None:
            path = free_path(out, f"{slug(prompt)}-{drawn.seed}", ".png")
            wrote(save_png(drawn.picture, path, **drawn.metadata))

        with bar("Merging") as progress:
            drawing = carry_out(
                asked,
                registry,
                base=base,
                device=device,
                loading=loading,
                progress=progress,
                on_picture=write,
                on_notice=note,
            )
    if drawing.entry:
        click.echo(f"Stored {drawing.entry.ref}.")
    if len(drawing.pictures) > 1:
        path = free_path(out, f"{slug(prompt)}-sheet", ".png")
        wrote(save_png(drawing.sheet(), path, **drawing.sheet_metadata))
    if layout and (layouts := drawing.layout_sheet()):
        wrote(save_png(layouts, layout, **drawing.sheet_metadata))
    elif layout:
        note("There is no layout: it takes one frame of several things; --confine asks for it.")
    _show_report(drawing.merge.report, heatmap)


def _with_file(options: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The options with what a file has for those that were not given."""
    if file is None:
        return options
    from conceptkit.workflows.draw_settings import read_settings

    given = click.get_current_context().get_parameter_source
    typed = {name for name in options if given(name) is not click.core.ParameterSource.DEFAULT}
    return options | {name: value for name, value in read_settings(file).items() if name not in typed}


def _show_report(report: "Report", file: Path | None) -> None:
    """How much each concept disturbs the others, where several are merged, and what each keeps."""
    from conceptkit.merging.report import MOST_PAIRED

    if report.interference:
        from rich.console import Console

        from conceptkit.pictures import heatmap
        from conceptkit.pictures.png_metadata import save_png

        click.echo(f"{heatmap.TITLE}:")
        Console().print(heatmap.table(report.names, report.interference))
        if file:
            picture = heatmap.picture(report.names, report.interference)
            wrote(save_png(picture, file, concepts=list(report.names)))
    elif file and len(report.kept) < 2:
        note("There is no heat map, because a concept that is alone has no other to disturb.")
    elif file:
        note(f"There is no heat map of more than {MOST_PAIRED} concepts; compose fewer to see one.")
    click.echo(report.text())
