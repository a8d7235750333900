"""The merge methods by name; adding one is adding a row."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from conceptkit.merging.methods.base import MergeContext, MergeResult
from conceptkit.merging.methods.baselines import BASELINES, merge_baseline
from conceptkit.merging.methods.constrained import merge_constrained
from conceptkit.merging.methods.joint import merge_joint
from conceptkit.merging.methods.soft import merge_soft

METHODS: Mapping[str, Callable[[MergeContext], MergeResult]] = MappingProxyType(
    {
        "constrained": merge_constrained,
        "soft": merge_soft,
        "joint": merge_joint,
        **{how: merge_baseline(how) for how in BASELINES},
    }
)
