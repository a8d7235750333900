"""Plain diffusers files, a LoRA and its embeddings, for places where conceptkit is not installed."""

import re
from dataclasses import replace

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import rank_gates
from conceptkit.formats import peft, textual_inversion
from conceptkit.formats.textual_inversion import keys_of, on_transformer, token_file
from conceptkit.registry import private_names

ALWAYS = (
    "A plain LoRA acts on every picture: those whose prompts say none of these words lean a little this way "
    "too. Unload it for them (`pipe.unload_lora_weights()`); conceptkit lets it act where the words are."
)


def files(concept: Concept, with_names: bool = False) -> dict[str, bytes]:
    """The LoRA, one embedding per token, and a README: file name -> content.

    Tokens are written in lower case, because tokenizers fold the case of a prompt but not that of a token.
    """
    concept = folded(concept)
    found = peft.files(concept, with_names) if concept.delta else {}
    found |= textual_inversion.files(concept, with_names)
    return {**found, "README.md": readme(concept, with_names).encode()}


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
    if concept.tokens and on_transformer(concept):
        return _readme_of_transformer(concept, base_name)
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
    spoken = any(gate.words is not None for gate in rank_gates(concept))
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


def _readme_of_transformer(concept: Concept, base_name: str) -> str:
    """The same where diffusers loads no embeddings: they are put into the tables by hand."""
    loading = ['pipe.load_lora_weights("FOLDER")'] if concept.delta else []
    words = dict(concept.words)
    for token, rows in sorted(concept.tokens.items()):
        loading.append(f'rows = load_file("FOLDER/{token_file(token)}")')
        for number, key in enumerate(keys_of(concept, len(rows))):
            part = "" if number == 0 else f"_{number + 1}"
            loading.append(f'add(pipe.tokenizer{part}, pipe.text_encoder{part}, "{token}", rows["{key}"])')
        whole = " ".join([token, *(f"{token}_{k}" for k in range(1, len(rows[0])))])
        words = {name: text.replace(token, whole) for name, text in words.items()}
    typed, example = " and ".join(f"`{text}`" for text in words.values()), " and ".join(words.values())
    calls = "\n".join(loading)
    always = f"\n{ALWAYS}\n" if any(gate.words is not None for gate in rank_gates(concept)) else ""
    return f"""# {concept.name}

Learned on the base `{base_name}`; it fits no other architecture. In a prompt type {typed}.

```python
from diffusers import DiffusionPipeline
from safetensors.torch import load_file


def add(tokenizer, encoder, token, rows):
    names = [token, *(f"{{token}}_{{k}}" for k in range(1, len(rows)))]
    tokenizer.add_tokens(names)
    table = encoder.get_input_embeddings().weight
    encoder.resize_token_embeddings(max(len(table), len(tokenizer)))
    table = encoder.get_input_embeddings().weight
    table.data[tokenizer.convert_tokens_to_ids(names)] = rows.to(table)


pipe = DiffusionPipeline.from_pretrained("BASE")
{calls}
pipe(prompt="a photo of {example}").images[0].save("{concept.name}.png")
```

Put the base's folder or hub id for BASE, and this folder for FOLDER.
{always}"""
