"""Deltas on convolutions: a matrix (o, i h w), of low rank or whole, changes the weight (o, i, h, w)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.concepts.delta import Factors
from conceptkit.errors import BaseMismatch
from conceptkit.tuners.kv_delta import KVDeltaConfig, KVDeltaLinear


class KVDeltaConv2d(KVDeltaLinear):
    """A convolution with deltas beside it: down is a convolution to r channels, up one of single cells.

    Raises BaseMismatch for a convolution in groups, or one with other padding than zeros.
    """

    def __init__(
        self,
        base_layer: nn.Conv2d,
        adapter_name: str,
        config: KVDeltaConfig,
        factors: Factors | None = None,
    ) -> None:
        if base_layer.groups != 1 or base_layer.padding_mode != "zeros":
            raise BaseMismatch("A delta on a convolution in groups has no meaning here; leave that map out")
        flat: Any = _Flat(base_layer)
        super().__init__(flat, adapter_name, config, factors)
        self.base_layer: Any = base_layer

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """(o, i, h, w), scaled; what merging adds."""
        return super().get_delta_weight(adapter_name).view_as(self.base_layer.weight)

    def _cells(self, y: Tensor) -> Tensor:
        return _cells(y)

    def _added(self, name: str, x: Tensor, share: Tensor | None) -> Tensor:
        base = self.base_layer
        *up, first = self._parameters_of(name)
        kernel = first.view(len(first), *base.weight.shape[1:])
        x = self._cast_input_dtype(x, first.dtype)
        added = F.conv2d(x, kernel, None, base.stride, base.padding, base.dilation)
        if share is not None:
            added = (_cells(added) * share.to(added)).transpose(1, 2).view_as(added)
        for factor in up:
            added = F.conv2d(added, factor[:, :, None, None])
        return added


def _cells(x: Tensor) -> Tensor:
    """(B, H W, c) of (B, c, H, W), as a linear map has them."""
    return x.flatten(2).transpose(1, 2)


class _Flat(nn.Module):
    """A convolution as the linear map that its flat weight is, for the sizes alone."""

    def __init__(self, base_layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = base_layer.weight
        self.out_features, self.in_features = base_layer.weight.flatten(1).shape
