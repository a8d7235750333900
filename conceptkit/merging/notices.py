"""What a user should know about the parts of a merge, in a sentence each."""

from itertools import combinations

from conceptkit.concepts import gates
from conceptkit.merging import parts
from conceptkit.merging.methods.base import MergeContext, equal


def notices_of(context: MergeContext) -> list[str]:
    """All sentences about these parts."""
    return [*_weak_words(context), *_same_words(context), *_beyond_cross_attention(context)]


def _beyond_cross_attention(context: MergeContext) -> list[str]:
    """One sentence for each part that changes more than keys and values on all pictures, beside others."""
    several = len(context.parts) > 1
    beyond = parts.beyond(context.parts, context.base.sizes)
    return [
        f"{part.concept.name} also changes {len(own)} maps beside keys and values of "
        "cross-attention: they are added to the others' exactly, and no figure here speaks of them"
        for part, own in zip(context.parts, beyond, strict=True)
        if several and own and not gates.rank_gates(part.concept)
    ]


def _weak_words(context: MergeContext) -> list[str]:
    """One sentence for each part that was given a strength and has nothing that could be weaker."""
    return [
        f"{part.concept.name} is a word alone, which is as strong as it is: {part.weight:g} changes nothing"
        for part in context.parts
        if part.weight != 1 and not part.concept.delta and part.concept.reference is None
    ]


def _same_words(context: MergeContext) -> list[str]:
    """One sentence for each two parts with one word: a rare token may have been drawn twice."""
    sentences = []
    for one, other in combinations(context.parts, 2):
        pairs = [
            (mine, theirs) for mine in one.concept.tokens.values() for theirs in other.concept.tokens.values()
        ]
        if one.concept.noun == other.concept.noun and any(equal(*pair) for pair in pairs):
            sentences.append(
                f"{one.concept.name} and {other.concept.name} have the same word inside, so each looks like "
                "both; learn one of them again with another --seed"
            )
    return sentences
