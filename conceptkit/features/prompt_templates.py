"""Prompts in which a concept's words are read: those that rows are fitted on, and held-out ones."""

from conceptkit.concepts.concept import Concept

# What words mean moves with their context, so rows are fitted on many; those they are judged on are others.
SUBJECTS = {
    "fit": """
        a {}
        photo of a {}
        a photo of a {}
        a picture of a {}
        the {}
        a {} in the snow
        a {} on the beach
        photo of a {} in a forest
        a photo of a {} in the city
        a picture of a {} in the mountains
        a far away {} in the desert
        a zoomed in {}
        photo of a close up {}
        a very small {} in a meadow
        a red {} in the kitchen
        a blue {} on the grass
        a {} wearing a hat
        a photo of a {} wearing sunglasses in the library
        a {} running in the woods
        a {} sitting on the moon
        a {} next to a house
        photo of a {} in front of a tree
        a chair and a {}
        a cat next to a {}
        a pencil drawing of a {}
        a watercolour painting of a {} in the city
    """,
    "held-out": """
        this is a {}
        photo of the {} in a kitchen
        a {} at the seaside
        a golden {} on the moon
        photo of a {} wearing a scarf in the snow
        a green {} jumping in the desert
        a {} sleeping in the library
        a {} in front of a car
        a picture of a teapot next to a {} in the forest
        a far away {} on the grass
        pixel art of a {}
        a close up {} in front of mountains
    """,
}
STYLES = {
    "fit": """
        a picture in {}
        a dog in {}
        a red car in {}
        a house in the snow in {}
        a cat sitting in the kitchen in {}
        a tree by a lake, in {}
        a woman wearing a hat, in {}
        a chair next to a candle in {}
        the city at night in {}
        a boat on the beach in {}
        a flower in {}
        {}, a bird in a forest
    """,
    "held-out": """
        a rabbit in {}
        a teapot on a table in {}
        a gate in front of mountains in {}
        a man reading in the library, in {}
        a blue fish in {}
        {}, a house in the desert
    """,
}


def context_prompts(concept: Concept, split: str = "fit") -> list[str]:
    """Prompts that hold the concept's words, tokens written out; `split` is "fit" or "held-out"."""
    return [
        template.strip().format(text)
        for text in concept.words.values()
        for template in _templates(concept, text)[split].strip().splitlines()
    ]


def _templates(concept: Concept, text: str) -> dict[str, str]:
    return STYLES if concept.kind == "style" or text.endswith(" style") else SUBJECTS
