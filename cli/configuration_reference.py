"""The page of the reference on the fields of a recipe, from the dataclass, its docstring and its table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import getdoc
from typing import Any

from conceptkit.learn.config import CHOICES, DEFAULT_CONFIGS, TrainConfig
from conceptkit.learn.recipes import ROWS
from conceptkit.learn.train_config import PRODIGY

HEAD = """\
<!-- Written by `make reference`; change the docstring of TrainConfig instead. -->

# Configuration

A recipe is the full set of hyper-parameters with which one concept is learned. Each method has a recipe of
its own for each family of bases, the last tables of this page; `conceptkit add ... --dry-run` prints the one
that would be used. Change a field with `--set FIELD=VALUE` on `conceptkit add`, or from
Python with `ck.add(..., changes={"FIELD": VALUE})`. `--config FILE.toml` reads a whole recipe. The recipe is
stored with the concept.

"Keyed" says that a field belongs to the adapter `keyed` alone, that of the method `custom`.
"""


PUBLISHED = """\
## Published recipes

On other bases a method goes by what was published for it, with the loop of its source: how a LoRA begins, how
noise levels are drawn, what is clipped and what decays. A family without a row of its own has that of
`stable-diffusion`. Rates are those that the source's script takes after it has scaled them itself.
"""


def described(doc: str, names: Sequence[str]) -> dict[str, str]:
    """Field -> its text in a docstring with entries such as `rank: of the delta.` or `begin, end: both.`

    An entry begins a line or follows the end of a sentence, and ends where the next begins. A field without
    an entry of its own refers to those that name it.
    """
    text = " ".join(doc.split())
    some = "|".join(map(re.escape, names))
    entry = re.compile(rf"(?:^|(?<=[.;] ))((?:{some})(?:, (?:{some}))*): ")
    found = [(match[1].split(", "), match.start(), match.end()) for match in entry.finditer(text)]
    ends = [start for _, start, _ in found[1:]] + [len(text)]
    own = {
        name: text[begin:end].strip()
        for (these, _, begin), end in zip(found, ends, strict=True)
        for name in these
    }
    entries = dict(own)
    for name in set(names) - set(own):
        if places := [f"`{other}`" for other, entry in entries.items() if f"`{name}`" in entry]:
            own[name] = f"See {' and '.join(places)}."
    return own


def field_rows() -> list[tuple[str, str, str, str]]:
    """(field, type, default, text) of each field of a recipe, in order; without a text it is ''."""
    known = [field for field in fields(TrainConfig) if field.name != "method"]
    texts = described(getdoc(TrainConfig) or "", [field.name for field in known])
    rows = []
    for field in known:
        default = "" if field.default is MISSING else _value(field.default)
        kind = field.type if isinstance(field.type, str) else field.type.__name__
        if field.name in CHOICES:
            kind = " ".join(_value(choice) for choice in CHOICES[field.name])
        rows.append((field.name, kind, default, texts.get(field.name, "")))
    return rows


def method_rows(recipes: Mapping[str, TrainConfig]) -> list[list[str]]:
    """[field, value in each recipe...] of the fields in which recipes differ; a default is left empty."""
    rows = []
    for field in fields(TrainConfig):
        values = [getattr(recipe, field.name) for recipe in recipes.values()]
        if field.name != "method" and any(value != field.default for value in values):
            rows.append([f"`{field.name}`", *("" if v == field.default else _value(v) for v in values)])
    return rows


def published_rows() -> list[list[str]]:
    """[method, family, rate, rank, steps, batch, source] of each published recipe."""
    rows = []
    for (method, family), row in ROWS.items():
        recipe = row.config
        delta = recipe.learning_rate if recipe.rank else recipe.full_learning_rate
        rate = delta if recipe.max_train_steps else recipe.token_learning_rate
        steps = f"{recipe.max_train_steps or recipe.token_train_steps}"
        if row.steps is not None:
            steps = f"{row.steps.each} a photo, {row.steps.least} to {row.steps.most}"
        named = "Prodigy" if recipe.optimizer == PRODIGY else f"{rate:g}"
        source = f"{row.source}; {row.why}" if row.why else row.source
        rank = f"{recipe.rank or 'full'}" if recipe.max_train_steps else f"{recipe.num_vectors} vector"
        batch = f"{recipe.train_batch_size}"
        rows.append([f"`{method}`", f"`{family}`", named, rank, steps, batch, source])
    return rows


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Fields\n"]
    for name, kind, default, text in field_rows():
        parts.append(f"### `{name}`\n\n{_sentence(_kind(kind))}, default {default}.\n\n{_sentence(text)}\n")
    parts.append("## Recipes on the storybook\n\nAn empty cell is the field's default.\n")
    parts.append(_table(["field", *(f"`{name}`" for name in DEFAULT_CONFIGS)], method_rows(DEFAULT_CONFIGS)))
    parts.append(PUBLISHED)
    parts.append(_table(["method", "family", "rate", "rank", "steps", "batch", "source"], published_rows()))
    return "\n".join(parts)


def _value(value: Any) -> str:
    shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
    return f"`{shown}`"


def _kind(kind: str) -> str:
    names = {"int": "a whole number", "float": "a number", "bool": "yes or no", "str": "a text"}
    return f"one of {kind}" if kind.startswith("`") else names.get(kind, f"`{kind}`")


def _sentence(text: str) -> str:
    text = text.rstrip(";")
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,:]", text) else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
