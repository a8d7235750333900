"""What files say of themselves in their header, in the words that other programs look for."""

import hashlib
import json

from conceptkit.concepts.concept import Concept
from conceptkit.formats.module_names import Names
from conceptkit.formats.provenance import provenance


def metadata(concept: Concept, names: Names, typed: str, with_names: bool = False) -> dict[str, str]:
    """`modelspec.*`: https://github.com/Stability-AI/ModelSpec, and what conceptkit knows.

    typed: what a prompt has to say.
    """
    parents = [str(parent) for parent in concept.provenance.get("parents", ())]
    told = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": concept.name,
        "modelspec.architecture": names.architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models"
        if names.base.startswith("sd")
        else "https://github.com/black-forest-labs/flux",
        "modelspec.trigger_phrase": typed,
        "modelspec.merged_from": ", ".join(parents),
        "conceptkit": provenance(concept, with_names),
    }
    return {key: text for key, text in told.items() if text}


def network(concept: Concept, names: Names, rank: int, typed: str) -> dict[str, str]:
    """`ss_*`, as kohya's sd-scripts writes them."""
    shown = {concept.name: {typed: 1}} if typed else {}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_base_model_version": names.base,
        "ss_v2": str(names.base == "sd_v2"),
        "ss_output_name": concept.name,
        "ss_tag_frequency": json.dumps(shown),
    }


def tensor_hash(body: bytes) -> str:
    """`sshs_model_hash`: sha256 of the tensors behind the header."""
    return hashlib.sha256(body).hexdigest()
