"""Composing at Stable Diffusion 1.5's size: 32 maps, d = 768, O = 24,960, through the general captions."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from conceptkit.base import attention, pipeline
from conceptkit.concepts.concept import Concept
from conceptkit.features import caption_statistics, captions
from conceptkit.merging.compose import compose
from tests import tiny
from tests.test_base import SD15


@pytest.fixture(scope="module")
def sd15() -> pipeline.Base:
    """Real map shapes with random weights, nothing else of the UNet, and a flat, wide text encoder."""
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    for linear in attention.kv_maps(unet).values():
        linear.weight = nn.Parameter(torch.randn(linear.weight.shape) * 0.02)
    words = " ".join(dict.fromkeys(" ".join(captions.captions("sd15")).split()))
    tokenizer = tiny.tokenizer(words)
    pipe = StableDiffusionPipeline(
        vae=None,
        text_encoder=tiny.text_encoder(tokenizer, 768).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=tiny.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline.of(pipe, "sd15")


def concept(sd15: pipeline.Base, name: str, noun: str, seed: int) -> Concept:
    make = torch.Generator().manual_seed(seed)
    down = torch.randn(4, 768, generator=make) / 768
    return Concept(
        name=name,
        kind="subject",
        noun=noun,
        base=sd15.fingerprint,
        base_name="sd15",
        tokens={f"<{name}>": (0.02 * torch.randn(1, 768, generator=make),)},
        words={name: f"<{name}> {noun}"},
        delta={map: (torch.randn(o, 4, generator=make), down) for map, o in sd15.sizes.items()},
        recipe={},
        provenance={},
    )


@pytest.mark.slow
def test_compose_at_real_size(sd15, monkeypatch):
    texts = captions.captions("sd15")
    assert len(texts) == len(set(texts)) == 500
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts[::6])
    assert (len(sd15.sizes), sum(sd15.sizes.values()), sd15.width) == (32, 24_960, 768)
    pair = concept(sd15, "my_dog", "dog", 1), concept(sd15, "moongate", "gate", 2)
    soft = compose(*pair, base=sd15).concept
    assert soft.delta.rank == sum(soft.recipe["rows"]) <= 32
    assert len(soft.to_bytes()) < 3 * soft.delta.rank * (24_960 + 2 * 768)
    merge = compose(*pair, base=sd15, merge_method="closed-form")
    rank = merge.concept.delta.rank
    assert rank == merge.report.rows <= 16
    assert len(merge.concept.to_bytes()) < 3 * rank * (24_960 + 2 * 768)
    # The merge's rows are those of its concepts, one after the other; what it does there is what they do.
    rows = merge.concept.rows.double()
    found = merge.concept.delta.rows(sd15.sizes, rows)
    wanted = torch.cat(
        [
            part.delta.rows(sd15.sizes, half)
            for part, half in zip(pair, rows.split(merge.concept.recipe["rows"]), strict=True)
        ]
    )
    assert (found - wanted).norm() < 0.01 * wanted.norm()
    assert merge.report.captions < compose(*pair, base=sd15, merge_method="sum").report.captions
