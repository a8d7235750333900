"""A concept's tokens as Textual Inversion embeddings."""

from collections.abc import Sequence

from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.formats.provenance import pack, provenance

KEYS = {1: ("emb_params",), 2: ("clip_l", "clip_g"), 3: ("clip_l", "clip_g", "t5xxl")}
"""What files call the rows for one encoder, for both of SDXL, and for the three of Stable Diffusion 3."""
FLUX_KEYS = ("clip_l", "t5")
"""What diffusers' training scripts call them for FLUX; ComfyUI has its T5 under one name everywhere."""
COMFYUI_T5 = "t5xxl"


def keys_of(concept: Concept, count: int) -> tuple[str, ...]:
    """What a file of this concept calls the rows for `count` encoders."""
    return FLUX_KEYS if count == 2 and on_transformer(concept) else KEYS[count]


def on_transformer(concept: Concept) -> bool:
    """Whether a concept was learned on a base whose denoiser is a transformer."""
    return "family" in concept.provenance or "transformer" in concept.delta.by_component()


def files(concept: Concept, with_names: bool = False) -> dict[str, bytes]:
    """One file for each token: file name -> content."""
    return {
        token_file(token): embedding(concept, rows, with_names)
        for token, rows in sorted(concept.tokens.items())
    }


def embedding(
    concept: Concept, rows: Sequence[Tensor], with_names: bool = False, t5: str = FLUX_KEYS[1]
) -> bytes:
    """One token's rows (k, d) for each encoder, see `KEYS`. t5: the key of FLUX's T5."""
    keys = [t5 if key == FLUX_KEYS[1] else key for key in keys_of(concept, len(rows))]
    return pack(dict(zip(keys, rows, strict=True)), {"conceptkit": provenance(concept, with_names)})


def token_file(token: str) -> str:
    """The file name for a token's embeddings."""
    return f"{token.strip('<>')}.safetensors"
