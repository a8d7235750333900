"""A concept's tokens as Textual Inversion embeddings."""

from collections.abc import Sequence

from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.formats.provenance import pack, provenance

SDXL_KEYS = ("clip_l", "clip_g")


def files(concept: Concept, with_names: bool = False) -> dict[str, bytes]:
    """One file for each token: file name -> content."""
    return {
        token_file(token): embedding(concept, rows, with_names)
        for token, rows in sorted(concept.tokens.items())
    }


def embedding(concept: Concept, rows: Sequence[Tensor], with_names: bool = False) -> bytes:
    """One token's rows (k, d): `emb_params`, or `clip_l` and `clip_g` for the two encoders of SDXL."""
    keys = ("emb_params",) if len(rows) == 1 else SDXL_KEYS
    return pack(dict(zip(keys, rows, strict=True)), {"conceptkit": provenance(concept, with_names)})


def token_file(token: str) -> str:
    """The file name for a token's embeddings."""
    return f"{token.strip('<>')}.safetensors"
