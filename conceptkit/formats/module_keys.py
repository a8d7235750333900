"""The keys of other programs' files: which module of which part of a pipeline, and what of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

DENOISER, ANY = "unet", ""
"""Parts of a pipeline as deltas name them; the second: the file does not say which."""

_ROLES = (
    (r"\.lora_A(?:\.default)?\.weight|\.lora_down\.weight|\.lora(?:_linear_layer)?\.down\.weight", "down"),
    (r"\.lora_B(?:\.default)?\.weight|\.lora_up\.weight|\.lora(?:_linear_layer)?\.up\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.alpha", "alpha"),
    (r"\.dora_scale|\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude"),
    (r"\.diff", "diff"),
    (r"\.weight/u", "u"),
    (r"\.weight/v", "v"),
    (r"\.weight", "whole"),
)
_NAMED = re.compile(r"(?P<module>.+)\.(?P<role>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)")
_PROCESSOR = re.compile(
    r"(?P<attention>.+)\.processor\.(?P<map>to_q|to_k|to_v|to_out)_(?:lora\.(?P<side>down|up)"
    r"|custom_diffusion(?:\.0)?)\.(?P<what>weight|bias)"
)
_PARTS = (
    ("base_model.model.", ANY),
    ("params/unet/", DENOISER),
    ("params/text_encoder/", "text_encoder"),
    ("unet/", DENOISER),
    ("text_encoder/", "text_encoder"),
    ("model.diffusion_model.", DENOISER),
    ("diffusion_model.", DENOISER),
    ("lora_unet_", DENOISER),
    ("lora_transformer_", DENOISER),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("lycoris_", ANY),
    ("unet.", DENOISER),
    ("transformer.", DENOISER),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
)
T5 = 2
"""The number that the rows for a T5 have in files: that of SD3. FLUX has no second CLIP before it."""
_TOKENS = (
    (re.compile(r"emb_params"), "", 0),
    (re.compile(r"t5xxl|t5"), "", T5),
    (re.compile(r"clip_l|text_encoders_0"), "", 0),
    (re.compile(r"clip_g|text_encoders_1"), "", 1),
    (re.compile(r"string_to_param/\*"), "", 0),
    (re.compile(r"bundle_emb\.(?P<token>.+?)\.(?:string_to_param\.\*|emb_params|clip_l)"), "", 0),
    (re.compile(r"bundle_emb\.(?P<token>.+?)\.clip_g"), "", 1),
    (re.compile(r"bundle_emb\.(?P<token>.+?)\.(?:t5xxl|t5)"), "", T5),
    (re.compile(r"(?:modifier_token/|params/new_concept_embedding/)(?P<token>[^/]+)"), "", 0),
    (re.compile(r"(?P<token><[^\s<>/]+>)"), "", 0),
)
IGNORED = re.compile(r"string_to_token/.*|.*position_ids|__index__|global_step|iteration|epoch|step")
"""What files hold beside weights, without an effect on pictures."""


@dataclass(frozen=True)
class ModuleKey:
    """part: of a pipeline, "" where the file does not say. module: its name, levels joined by "_". role: what
    of it the tensor is: "up", "down", "alpha", "hada_w1_a", "whole", ..."""

    part: str
    module: str
    role: str


def token_of(key: str) -> tuple[str, int] | None:
    """(token, number of the text encoder) of a key that holds an embedding; token "": the file's only one."""
    for pattern, _, encoder in _TOKENS:
        if found := pattern.fullmatch(key):
            return (found.groupdict().get("token") or "", encoder)
    return None


def module_of(key: str) -> ModuleKey | None:
    """What a key of an adapter or a whole matrix is about; None for any other key."""
    name, role = _role(key)
    if not role:
        return None
    part = ANY
    for prefix, where in _PARTS:
        if name.startswith(prefix):
            name, part = name.removeprefix(prefix), where
            if part or prefix == "lycoris_":
                break
    if part == ANY and name.startswith(("unet.", "transformer.")):
        name, part = name.partition(".")[2], DENOISER
    return ModuleKey(part, flat(name), role)


def flat(name: str) -> str:
    """A module's name as the index has it: "_" for ".", without the level that transformers 5 left out."""
    return name.replace(".", "_").removeprefix("text_model_")


def _role(key: str) -> tuple[str, str]:
    if found := _PROCESSOR.fullmatch(key):
        end = "to_out.0" if found["map"] == "to_out" else found["map"]
        return f"{found['attention']}.{end}", found["side"] or {"weight": "whole", "bias": "bias"}[
            found["what"]
        ]
    if found := _NAMED.fullmatch(key):
        return found["module"], found["role"]
    for pattern, role in _ROLES:
        if ending := re.search(rf"(?:{pattern})$", key):
            return key[: ending.start()], role
    return key, ""


def grouped(keys: Mapping[str, ModuleKey]) -> dict[tuple[str, str], dict[str, str]]:
    """(part, module) -> role -> key."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for key, about in keys.items():
        found.setdefault((about.part, about.module), {})[about.role] = key
    return found
