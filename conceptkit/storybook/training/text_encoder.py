"""The storybook's text encoder learns to read before the UNet learns to draw.

Trained together from nothing, the UNet finds the place in the padding's features and hardly ever looks for a
colour. So the encoder first learns to tell, at the end of the text and at every position behind it, what the
caption says of each thing; then it stands still, as Stable Diffusion's does.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from conceptkit.storybook.training import timed_training
from conceptkit.storybook.world.scene import ACCESSORIES, CLASSES, COLOURS, FRAMINGS, MATERIALS, PATTERNS
from conceptkit.storybook.world.scenery import PLACES, STYLES

OF_A_THING: tuple[str, ...] = (
    *CLASSES,
    *COLOURS,
    *PATTERNS,
    *MATERIALS,
    *(a for a in ACCESSORIES),
    *dict.fromkeys(state for spec in CLASSES.values() for state in (spec.rest, *spec.states)),
    *(words for pair in FRAMINGS.values() for words in pair),
)
_BETWEEN = re.compile(r" next to | in front of (?!mountains)| and ")


def told(caption: str) -> np.ndarray:
    """What a caption says, as 0 and 1: of its first thing, of its second, its relation, place and style."""
    things = [*_BETWEEN.split(caption), "", ""][:2]
    of_things = [[float(f" {word} " in f" {thing} ") for word in OF_A_THING] for thing in things]
    relation = [
        float(" next to " in caption or " and " in caption),
        float(bool(re.search(r" in front of an? ", caption))),
    ]
    places = [float(any(caption.endswith(words) for words in phrases)) for _, phrases in PLACES.values()]
    styles = [float(any(caption.startswith(words) for words in phrases)) for _, phrases in STYLES.values()]
    return np.array([*of_things[0], *of_things[1], *relation, *places, *styles], dtype=np.float32)


def train(
    encoder: CLIPTextModel,
    ids: np.ndarray,
    tokenizer: CLIPTokenizer,
    minutes: float,
    cache: Path,
    batch: int = 128,
) -> CLIPTextModel:
    """ids int (n, length), captions' tokens; the encoder is trained in place and returned."""
    torch.manual_seed(6)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    targets = torch.from_numpy(np.stack([told(text) for text in texts]))
    tokens = torch.from_numpy(ids.astype(np.int64))
    head = nn.Linear(encoder.config.hidden_size, targets.shape[1])
    model = nn.ModuleDict({"encoder": encoder, "head": head})

    def loss_of(step: int) -> Tensor:
        picks = torch.from_numpy(np.random.default_rng((61, step)).integers(len(tokens), size=batch))
        words = tokens[picks]
        with timed_training.half():
            logits = model["head"](model["encoder"](input_ids=words).last_hidden_state).float()
        behind = words == tokenizer.eos_token_id
        wanted = targets[picks][:, None].expand(-1, words.shape[1], -1)
        return 20 * F.binary_cross_entropy_with_logits(logits[behind], wanted[behind])

    timed_training.train(model, loss_of, minutes=minutes, lr=1e-3, checkpoint=cache / "reader.pt", hold=0.4)
    return encoder.eval()
