"""Key locking (Perfusion, 2305.01644): attention finds a concept where it would find its class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conceptkit.base import Base, encode
from conceptkit.compose import Factor, principal_rows
from conceptkit.concept import Concept
from conceptkit.contexts import ENERGY, context_prompts, positions, spell, word_features
from conceptkit.learn import adapters
from conceptkit.learn.adapters import Look


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


def plain_rows(concept: Concept, base: Base, keys: Factor, most: int) -> Tensor:
    """Principal rows (s, d), s <= `most`, of the class noun by itself, in the prompts of the concept.

    A delta that is nothing there leaves pictures of the class alone, without having seen any.
    """
    if not most:
        return torch.zeros(0, base.width, dtype=torch.float64)
    (words,) = concept.words.values()
    read = encode(base.pipe, [text.replace(words, concept.noun or "") for text in context_prompts(concept)])
    there = positions(read.ids, spell(base.pipe, concept.noun or ""))
    return principal_rows(read.hidden[there], keys, energy=ENERGY, most=most)


def lock_keys(look: Look, group: list[nn.Parameter], difference: Tensor) -> list[nn.Parameter]:
    """Set the values of all key maps for good, and return what is left to learn of a group.

    difference: the class's rows less the concept's (s, d). At the concept's rows a key map W0 then gives what
    it gives at the class's: the values are W0 difference^T (o, s).
    """
    held = set()
    for name, layer in adapters.layers(look.base.unet):
        if name.endswith("attn2.to_k"):
            values = layer.ups[adapters.ADAPTER]
            weight = layer.get_base_layer().weight.cpu().double()  # Apple's GPUs have no float64
            values.data = (weight @ difference.cpu().double().T).float().to(values.device)
            values.requires_grad_(False)
            held.add(id(values))
    return [parameter for parameter in group if id(parameter) not in held]
