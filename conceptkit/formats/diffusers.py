"""Plain diffusers files, a LoRA and its embeddings, for places where conceptkit is not installed."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import rank_gates
from conceptkit.errors import ConceptError, NoEffect
from conceptkit.formats.peft import LORA, lora
from conceptkit.formats.textual_inversion import embedding, token_file
from conceptkit.registry import private_names

if TYPE_CHECKING:
    from conceptkit.merging.compose import Merge

ALWAYS = (
    "A plain LoRA acts on every picture: those whose prompts say none of these words lean a little this way "
    "too. Unload it for them (`pipe.unload_lora_weights()`); conceptkit lets it act where the words are."
)


def export(
    concept: "Concept | Merge", out_dir: str | os.PathLike[str], *, with_names: bool = False
) -> list[Path]:
    """Write a concept or a merge for plain diffusers: the LoRA, one embedding per token, and a README.

    The folder appears whole or not at all. What leaves with it is hashes, not where the base lies on this
    machine or what the photos are called, except `with_names`.

    Raises ConceptError when it already holds files, and for what no LoRA can be; NoEffect when there is
    nothing to write.
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
        files[LORA] = lora(concept, with_names)
    files |= {
        token_file(token): embedding(concept, rows, with_names)
        for token, rows in sorted(concept.tokens.items())
    }
    files["README.md"] = readme(concept, with_names).encode()
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


def readme(concept: Concept, with_names: bool = False) -> str:
    """How to load the files and what to type."""
    base_name = concept.base_name if with_names else private_names.public_base(concept.base_name)
    double = any(len(rows) == 2 for rows in concept.tokens.values())
    lines = ['pipe.load_lora_weights("FOLDER")'] if concept.delta else []
    for token in sorted(concept.tokens):
        file = token_file(token)
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
    spoken = any(voice.words is not None for voice in rank_gates(concept))
    always = f"\n{ALWAYS}\n" if spoken else ""
    return f"""# {concept.name}

Learned on the base `{base_name}`; it fits no other architecture. In a prompt type {typed}.

```python
{imports}

pipe = DiffusionPipeline.from_pretrained("BASE")
{loading}
pipe("a photo of {example}").images[0].save("{concept.name}.png")
```

Put the base's folder or hub id for BASE, and this folder for FOLDER.
{always}"""
