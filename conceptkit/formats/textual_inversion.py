"""A concept's tokens as Textual Inversion embeddings."""

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Factors
from conceptkit.formats.provenance import pack, provenance

SDXL_KEYS = ("clip_l", "clip_g")


def embedding(concept: Concept, rows: Factors, with_names: bool = False) -> bytes:
    """One token's rows (k, d): `emb_params`, or `clip_l` and `clip_g` for the two encoders of SDXL."""
    keys = ("emb_params",) if len(rows) == 1 else SDXL_KEYS
    return pack(dict(zip(keys, rows, strict=True)), {"conceptkit": provenance(concept, with_names)})


def token_file(token: str) -> str:
    """The file name for a token's embeddings."""
    return f"{token.strip('<>')}.safetensors"
