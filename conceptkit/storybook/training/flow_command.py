"""Make the second base: `python -m conceptkit.storybook.training flow --core-minutes N --cache DIR`.

Its stages can run at the same time, in two processes: `teach` writes shards of what the first base predicts,
`learn` trains on those that are there. Both go on where they were stopped.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionPipeline

from conceptkit.base.fingerprint import fingerprint_of
from conceptkit.storybook.training import data, distillation, flow, flow_pipeline, timed_training

SCENES, VARIANTS = 64_000, 4
FIRST = Path(__file__).parents[1] / "weights" / "pipeline"
CHECKPOINT = "flow.pt"


def _first() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(str(FIRST))


def teach(cache: Path, shards: int) -> None:
    """Write so many shards of what the first base predicts."""
    first = _first()
    distillation.write_shards(
        distillation.Teacher(first.unet, flow_pipeline.projected(first.text_encoder), first.scheduler),
        first.vae,
        data.pictures("base", SCENES, cache),
        data.tokenised("base", SCENES, VARIANTS, first.tokenizer, cache),
        shards,
        cache,
    )


def _untrained(first: StableDiffusionPipeline) -> SD3Transformer2DModel:
    torch.manual_seed(8)
    return flow.transformer(first.text_encoder.config.hidden_size + flow_pipeline.WORDS_WIDTH)


def learn(cache: Path, core_minutes: float) -> None:
    """Train the transformer on the shards that are there."""
    first = _first()
    pipe = flow_pipeline.pipeline(first, _untrained(first))
    if not any((cache / distillation.SHARDS).glob("*.pt")):
        raise click.ClickException(f"{cache} has no shards to learn from: run `--stage teach` first")
    flow.train(
        pipe.transformer,
        (pipe.text_encoder, pipe.text_encoder_2),
        distillation.Shards(cache, data.weights("base", SCENES, cache)),
        first.scheduler,
        core_minutes,
        cache / CHECKPOINT,
    )


def save(cache: Path, out: Path) -> None:
    """Write the pipeline with the moving average of the weights."""
    first = _first()
    model = _untrained(first)
    if not (cache / CHECKPOINT).exists():
        raise click.ClickException(f"{cache} has no {CHECKPOINT} to save: run `--stage learn` first")
    state = torch.load(cache / CHECKPOINT, weights_only=True)
    prefix = "transformer."
    average = {k.removeprefix(prefix): v for k, v in state["average"].items() if k.startswith(prefix)}
    model.load_state_dict(average)
    pipe = flow_pipeline.pipeline(first, model)
    flow_pipeline.save(pipe, out)
    known = json.dumps(fingerprint_of(pipe).to_json())
    (out / "fingerprint.json").write_text(known + "\n", encoding="utf-8")
    figures = {"core_minutes": round(state["spent"] / 60, 1), "steps": state["step"]}
    timed_training.console.print(f"Wrote {out}", figures)


@click.command()
@click.option("--core-minutes", default=360.0, show_default=True, help="Processor time of `learn`.")
@click.option("--shards", default=128, show_default=True, help=f"Of {distillation.BLOCK} predictions each.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("storybook-cache"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where `save` writes; CACHE/flow if not given.")
@click.option("--stage", type=click.Choice(["teach", "learn", "save"]), multiple=True)
@click.option("--threads", default=1, show_default=True)
def main(
    core_minutes: float, shards: int, cache: Path, out: Path | None, stage: tuple[str, ...], threads: int
) -> None:
    """Train the second base, of joint attention and rectified flow, by what the first one predicts."""
    torch.set_num_threads(threads)
    cache.mkdir(parents=True, exist_ok=True)
    if not stage or "teach" in stage:
        teach(cache, shards)
    if not stage or "learn" in stage:
        learn(cache, core_minutes)
    if not stage or "save" in stage:
        save(cache, out or cache / "flow")
