"""PEFT tuners of conceptkit, and how they are put on models; importing this registers KV_DELTA and KEYED.

A KV_DELTA is low rank, `(up, down)`, or full, `(weight,)`, by default on keys and values of cross-attention.
A KEYED delta is low rank with frozen keys in place of `down`: what it adds where key i reads 1 and the others
0 is column i of the values, so that what is learned lives in the very rows that composing holds fixed.
"""

from conceptkit.tuners.keyed import KeyedConfig, KeyedLinear
from conceptkit.tuners.kv_delta import ConceptPeftType, KVDeltaConfig, KVDeltaLinear
from conceptkit.tuners.register import register

__all__ = ["ConceptPeftType", "KVDeltaConfig", "KVDeltaLinear", "KeyedConfig", "KeyedLinear", "register"]

register()
