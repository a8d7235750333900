"""Plain diffusers files, a LoRA and its embeddings, for places where conceptkit is not installed."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from conceptkit.concept import Concept, Factors
from conceptkit.errors import ConceptError, NoEffect
from conceptkit.kv_delta import places
from conceptkit.merging.wide import voices

if TYPE_CHECKING:
    from conceptkit.merge import Merge

LORA = "pytorch_lora_weights.safetensors"
SDXL_KEYS = ("clip_l", "clip_g")
TEXT_MODEL = "text_model."
ALWAYS = (
    "A plain LoRA acts on every picture: those whose prompts say none of these words lean a little this way "
    "too. Unload it for them (`pipe.unload_lora_weights()`); conceptkit lets it act where the words are."
)


def export(concept: "Concept | Merge", out_dir: str | os.PathLike[str]) -> list[Path]:
    """Write a concept or a merge for plain diffusers: the LoRA, one embedding per token, and a README.

    The folder appears whole or not at all. Raises ConceptError when it already holds files, and for what no
    LoRA can be; NoEffect when there is nothing to write.
    """
    concept = concept if isinstance(concept, Concept) else concept.concept
    out = Path(out_dir).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConceptError(f"{out} already holds files, which are never overwritten; name a new folder")
    if not concept.delta and not concept.tokens:
        raise NoEffect(
            f"{concept.name} would change nothing: it has neither a delta nor a token; learn it again"
        )
    if concept.recipe.get("method") == "routed":
        raise ConceptError(
            f"{concept.name} is routed, which no LoRA can be; export one that was made without --how routed"
        )
    if concept.reference is not None:
        raise ConceptError(
            f"{concept.name} looks at its reference photo while it is drawn, which no LoRA can do; "
            "share it with export --bundle, or learn it again with --method custom"
        )
    files: dict[str, bytes] = {}
    if concept.delta:
        files[LORA] = lora(concept)
    files |= {_token_file(token): embedding(concept, rows) for token, rows in sorted(concept.tokens.items())}
    files["README.md"] = readme(concept).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, data in files.items():
            (beside / name).write_bytes(data)
        beside.chmod(0o755)
        beside.replace(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return [out / name for name in files]


def lora(concept: Concept) -> bytes:
    """The delta as a LoRA for `load_lora_weights`, of the UNet and of text encoders that it has maps of.

    One rank for all maps of a part, padded with zeros, and alpha equal to it: readers that drop per-module
    alphas, as diffusers does, then still scale by 1.
    """
    tensors: dict[str, Tensor] = {}
    adapter: dict[str, Any] = {}
    for place, delta in places(concept.delta).items():
        factors = {name: _low_rank(parts) for name, parts in sorted(delta.items())}
        rank = max(up.shape[1] for up, _ in factors.values())
        for name, (up, down) in factors.items():
            more, key = rank - up.shape[1], f"{place}.{_written(place, name)}"
            tensors[f"{key}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, more))
            tensors[f"{key}.lora_B.weight"] = torch.nn.functional.pad(up, (0, more))
        names = sorted(name.removeprefix(TEXT_MODEL) for name in factors)
        adapter |= {f"{place}.r": rank, f"{place}.lora_alpha": rank, f"{place}.target_modules": names}
    return _pack(tensors, {"lora_adapter_metadata": json.dumps(adapter), "conceptkit": provenance(concept)})


def _written(place: str, name: str) -> str:
    """A map's name as files have it: in transformers 5 CLIP's modules lost a level, files did not."""
    return name if place == "unet" else TEXT_MODEL + name.removeprefix(TEXT_MODEL)


def embedding(concept: Concept, rows: Factors) -> bytes:
    """One token's rows (k, d): `emb_params`, or `clip_l` and `clip_g` for the two encoders of SDXL."""
    keys = ("emb_params",) if len(rows) == 1 else SDXL_KEYS
    return _pack(dict(zip(keys, rows, strict=True)), {"conceptkit": provenance(concept)})


def provenance(concept: Concept) -> str:
    """What these tensors are and where they came from, as JSON for the file's header."""
    return json.dumps(
        {
            "name": concept.name,
            "kind": concept.kind,
            "noun": concept.noun,
            "base": concept.base.to_json(),
            "base_name": concept.base_name,
            "words": dict(concept.words),
            "recipe": dict(concept.recipe),
            "provenance": dict(concept.provenance),
        },
        sort_keys=True,
    )


def readme(concept: Concept) -> str:
    """How to load the files and what to type."""
    double = any(len(rows) == 2 for rows in concept.tokens.values())
    lines = ['pipe.load_lora_weights("FOLDER")'] if concept.delta else []
    for token in sorted(concept.tokens):
        file = _token_file(token)
        lines.append(
            f'rows = load_file("FOLDER/{file}")\n'
            f'pipe.load_textual_inversion(rows["clip_l"], "{token}", text_encoder=pipe.text_encoder, '
            f"tokenizer=pipe.tokenizer)\n"
            f'pipe.load_textual_inversion(rows["clip_g"], "{token}", text_encoder=pipe.text_encoder_2, '
            f"tokenizer=pipe.tokenizer_2)"
            if double
            else f'pipe.load_textual_inversion("FOLDER", weight_name="{file}", token="{token}")'
        )
    imports = "from diffusers import DiffusionPipeline" + (
        "\nfrom safetensors.torch import load_file" if double else ""
    )
    typed = " and ".join(f"`{text}`" for text in concept.words.values()) or "any prompt"
    example = " and ".join(concept.words.values()) or "anything"
    loading = "\n".join(lines)
    spoken = any(voice.words is not None for voice in voices(concept))
    always = f"\n{ALWAYS}\n" if spoken else ""
    return f"""# {concept.name}

Learned on the base `{concept.base_name}`; it fits no other architecture. In a prompt type {typed}.

```python
{imports}

pipe = DiffusionPipeline.from_pretrained("BASE")
{loading}
pipe("a photo of {example}").images[0].save("{concept.name}.png")
```

Put the base's folder or hub id for BASE, and this folder for FOLDER.
{always}"""


def _token_file(token: str) -> str:
    return f"{token.strip('<>')}.safetensors"


def _low_rank(factors: Factors) -> Factors:
    """(up, down) with the same product; a full matrix gets an identity beside it, which is exact."""
    if len(factors) == 2:
        return factors
    (weight,) = factors
    one = torch.eye(min(weight.shape), dtype=weight.dtype)
    return (weight, one) if weight.shape[0] >= weight.shape[1] else (one, weight)


def _pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Safetensors bytes, the same on every call: the library writes several header keys in random order."""
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = save(owned)
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}, **json.loads(data[8 : 8 + size])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
