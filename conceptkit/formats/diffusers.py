"""Plain diffusers files, a LoRA and its embeddings, for places where conceptkit is not installed."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import rank_gates
from conceptkit.errors import ConceptError, NoEffect
from conceptkit.files import fill_folder
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
    concept: "Concept | Merge",
    out_dir: str | os.PathLike[str],
    *,
    force: bool = False,
    with_names: bool = False,
) -> list[Path]:
    """Write a concept or a merge for plain diffusers: the LoRA, one embedding per token, and a README.

    out_dir: a folder, which is filled; all files appear there, or none. force: files may be written over.
    with_names: what leaves says where the base lies on this machine and what the photos are called, instead
        of hashes.

    Tokens are written in lower case, because tokenizers fold the case of a prompt but not that of a token.

    Raises ConceptError when a file is there already, and for what no LoRA can be; NoEffect when there is
    nothing to write.
    """
    concept = folded(concept if isinstance(concept, Concept) else concept.concept)
    if not concept.delta and not concept.tokens:
        raise NoEffect(
            f"{concept.name} would change nothing: it has neither a delta nor a token; learn it again"
        )
    if concept.recipe.get("method") == "routed":
        raise ConceptError(
            f"{concept.name} is routed, which no LoRA can be; "
            "export one that was made without --merge-method routed"
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
    return fill_folder(Path(out_dir).absolute(), files, force)


def folded(concept: Concept) -> Concept:
    """The concept with its tokens in lower case; of tokens that differ by case alone, some get a number."""
    names: dict[str, str] = {}
    for token in sorted(concept.tokens):
        name, number = token.lower(), 1
        while name in names.values():
            number += 1
            name = f"{token.lower().removesuffix('>')}-{number}>"
        names[token] = name
    if all(token == name for token, name in names.items()):
        return concept
    pattern = re.compile("|".join(re.escape(token) for token in names))
    return replace(
        concept,
        tokens={names[token]: rows for token, rows in concept.tokens.items()},
        words={
            word: pattern.sub(lambda found: names[found.group()], text)
            for word, text in concept.words.items()
        },
    )


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
