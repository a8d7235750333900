"""The family of bases that a file is for, by the names and shapes of its tensors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the text features that cross-attention reads -> family."""
EMBEDDINGS = {768: "sd1", 1024: "sd2", 1280: "sdxl"}
_INPUTS = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "down.weight", "hada_w1_b", "hada_w2_b")


def family_of_shapes(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """ "sd1", "sd2", "sdxl", "sd3" or "flux"; None where names and shapes do not tell."""
    if any("single_transformer_blocks" in key or "single_blocks" in key for key in shapes):
        return "flux"
    if any("joint_blocks" in key for key in shapes):
        return "sd3"
    if any("double_blocks" in key for key in shapes):
        return "flux"
    if any(_is_joint(key) for key in shapes):
        widths = {shape[-1] for key, shape in shapes.items() if "to_q" in key and key.endswith(_INPUTS)}
        return "flux" if 3072 in widths else "sd3"
    for key, shape in shapes.items():
        if "attn2" not in key or not any(f"to_{map}" in key for map in "kv"):
            continue
        width = shape[1] if len(shape) > 1 and (key.endswith(_INPUTS) or key.endswith("weight")) else 0
        if width in WIDTHS and not key.endswith(("up.weight", "lora_B.weight")):
            return WIDTHS[width]
    if any("lora_te2_" in key or "text_encoder_2" in key or key.endswith("clip_g") for key in shapes):
        return "sdxl"
    embedding = next((tuple(shape) for key, shape in shapes.items() if key.endswith("emb_params")), ())
    return EMBEDDINGS.get(embedding[-1]) if embedding else None


def _is_joint(key: str) -> bool:
    """Whether a key is of a transformer that diffusers names, without a UNet's levels around it."""
    before, found, _ = key.partition("transformer_blocks")
    return bool(found) and not any(
        level in before for level in ("down_", "up_", "mid_", "input_", "output_", "middle_")
    )
