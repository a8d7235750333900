"""The PEFT types of conceptkit, in PEFT's own tables: KV_DELTA and KEYED."""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from conceptkit.tuners.keyed import KeyedConfig, KeyedModel
from conceptkit.tuners.kv_delta import ConceptPeftType, KVDeltaConfig, KVDeltaModel


def register() -> None:
    """Let PEFT know KV_DELTA and KEYED; calling it again changes nothing."""
    for peft_type, config, model in (
        (ConceptPeftType.KV_DELTA, KVDeltaConfig, KVDeltaModel),
        (ConceptPeftType.KEYED, KeyedConfig, KeyedModel),
    ):
        key: Any = peft_type
        PEFT_TYPE_TO_CONFIG_MAPPING[key] = config
        PEFT_TYPE_TO_TUNER_MAPPING[key] = model
        PEFT_TYPE_TO_PREFIX_MAPPING[key] = model.prefix
