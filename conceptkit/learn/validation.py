"""The validation of a run: the loss on photos held out, with noise that never changes."""

from __future__ import annotations

from dataclasses import replace

import torch

from conceptkit.learn import latent_dataset, training_step
from conceptkit.learn.early_stopping import HELD_OUT_FROM, SAMPLES, EarlyStopping
from conceptkit.learn.training_step import TrainingContext

__all__ = ["HELD_OUT_FROM", "EarlyStopping", "early_stopping_for"]


def early_stopping_for(context: TrainingContext) -> EarlyStopping:
    """What follows the loss on the photos held out, or on all of them where there are few."""
    recipe = context.recipe
    if not recipe.validation_steps:
        return EarlyStopping()
    datasets = []
    for subject in context.subjects:
        photos, contexts = subject.photos, latent_dataset.contexts_of(subject, context.subjects)
        begin = len(photos) - 1 if len(photos) >= HELD_OUT_FROM else 0
        datasets.append(
            latent_dataset.still_dataset(
                context.base,
                photos.part(begin),
                subject.words,
                subject.kind,
                contexts[begin:],
                str(subject.auto_caption),
            )
        )
    plain = replace(
        recipe,
        train_batch_size=SAMPLES,
        sude_weight=0.0,
        attention_regularization_weight=0.0,
        sample_latents=False,
        snr_gamma=0.0,
        masked_loss="mean",
        weighting_scheme="stratified",
        precondition_outputs=False,
        gradient_accumulation_steps=1,
    )
    judged = replace(context, dataset=latent_dataset.joined(datasets), prior=None, recipe=plain)
    judged = replace(judged, distributed=type(context.distributed)())
    sample = training_step.sample_step(judged, ("validation", 0), with_prior=False)
    even = torch.arange(SAMPLES) % len(judged.dataset.latents)

    @torch.no_grad()
    def measure() -> float:
        conditionings = training_step.encode_conditions(
            judged, with_prior=False, token_learns=False, encoder_learns=False
        )
        return float(training_step.loss(judged, replace(sample, picks=even), conditionings))

    return EarlyStopping(recipe.validation_steps, recipe.early_stopping_patience, measure)
