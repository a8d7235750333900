"""Key locking (Perfusion, 2305.01644): attention finds a concept where it would find its class."""

from __future__ import annotations

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import encode, positions, spell
from conceptkit.concepts.concept import Concept
from conceptkit.features.concept_rows import word_features
from conceptkit.features.prompt_templates import context_prompts
from conceptkit.learn.trainable_delta import TrainableDelta, layers
from conceptkit.tuners import inject


def class_rows(concept: Concept, base: Base, rows: Tensor) -> Tensor:
    """What the class noun has in place of the concept's constraint rows (s, d): (s, d).

    The rows are combinations of the features of the concept's words over many prompts; these are the same
    combinations of the noun's features in the same prompts, all words of the concept replaced by the noun.
    """
    features, own = word_features(concept, base)
    (words,) = concept.words.values()
    plain = [text.replace(words, concept.noun or "") for text in context_prompts(concept)]
    read = encode(base.pipe, plain)
    there = positions(read.ids, spell(base.pipe, concept.noun or ""))
    means = [hidden[at].mean(0) for hidden, at in zip(read.hidden, there, strict=True)]
    of_class = torch.stack([means[k] for k, at in enumerate(own) for _ in range(int(at.sum()))]).double()
    combined = rows.double() @ torch.linalg.pinv(features.hidden[own].double())
    return combined @ of_class


def lock_keys(delta: TrainableDelta, difference: Tensor) -> None:
    """Set the values of all key maps for good; they are no longer among the groups that learn.

    difference: the class's rows less the concept's (s, d). At the concept's rows a key map W0 then gives what
    it gives at the class's: the values are W0 difference^T (o, s).
    """
    held, ending = set(), delta.base.architecture.key_ending
    for name, layer in layers(delta.base.denoiser):
        if name.endswith(ending):
            values = layer.ups[inject.ADAPTER]
            weight = layer.get_base_layer().weight.cpu().double()  # Apple's GPUs have no float64
            made = weight @ difference.cpu().double().T / layer.scaling[inject.ADAPTER]
            values.data = made.float().to(values.device)
            values.requires_grad_(False)
            held.add(id(values))
    left = [g._replace(parameters=[p for p in g.parameters if id(p) not in held]) for g in delta.groups]
    delta.groups[:] = [group for group in left if group.parameters]
