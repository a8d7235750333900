"""A concept that was learned of all parts together."""

from conceptkit.base.pipeline import check_fits
from conceptkit.concepts.concept import Concept, read
from conceptkit.errors import ConceptError
from conceptkit.merging import gated_lora
from conceptkit.merging.methods.base import MergeContext, MergeResult, equal
from conceptkit.registry.merge_recipe import AS_RECIPE


def merge_joint(context: MergeContext) -> MergeResult:
    """The delta of the concept that was learned of all of them together, when the registry has one.

    It is what it is at full strength, and only behind the words that learned with it.
    """
    tokens = {token: rows for part in context.parts for token, rows in part.concept.tokens.items()}
    names = " and ".join(part.concept.name for part in context.parts)
    other = ""
    for entry in context.registry.list():
        if set(entry.summary.get("tokens") or ()) == set(tokens) and len(context.parts) > 1:
            if entry.summary.get(AS_RECIPE):
                continue
            concept = read(context.registry, entry.ref)
            if _was_composed(concept):
                continue
            if not all(equal(rows, concept.tokens[token]) for token, rows in tokens.items()):
                other = entry.ref
                continue
            check_fits(concept.base, context.base, concept.name, concept.base_name)
            return MergeResult(
                concept.delta,
                [part.delta for part in context.parts],
                concept.rows,
                recipe={"joint": entry.ref, "joint_sha256": entry.hash, **gated_lora.recorded_gates(concept)},
            )
    if other:
        raise ConceptError(
            f"{other} was learned of other versions of {names}; compose those, or {other} by itself"
        )
    raise ConceptError(
        f"No concept was learned of {names} together; learn one jointly, or leave out --merge-method"
    )


def _was_composed(concept: Concept) -> bool:
    """Whether a concept came of others, and was not learned; a joint one that was shrunk stays joint."""
    if concept.provenance.get("how") == "shrink":
        return "weights" in concept.recipe
    return "parent_sha256" in concept.provenance
