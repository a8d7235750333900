"""The cross-attentions of a UNet: their key and value maps, and what they attend to."""

from typing import Any

from torch import Tensor, nn

from conceptkit.errors import BadBase

USABLE = "use a Stable Diffusion or SDXL pipeline"


def kv_maps(unet: nn.Module) -> dict[str, nn.Linear]:
    """Name -> Linear of every key and value map of the cross-attentions, in module order.

    Under a tuner layer it is the frozen map, and the name is the one it has without the tuner.
    Raises BadBase when there is none, or when they read features of different widths.
    """
    maps: dict[str, Any] = {}
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            maps[name] = module
            while hasattr(maps[name], "base_layer"):
                maps[name] = maps[name].base_layer
    widths = {linear.weight.shape[1] for linear in maps.values()}
    if len(widths) != 1:
        found = f"text features of {len(widths)} widths" if widths else "no cross-attention"
        raise BadBase(f"{type(unet).__name__} has {found}; {USABLE}")
    return maps


def attention_shares(module: nn.Module, queries: Tensor, hidden: Any, own: Tensor) -> Tensor:
    """Attention of each query, the mean over heads, added up by the weights `own` (B, T, N): (B, N, P).

    hidden: what it attends to (B, T, d), or a tuple that begins with it, as an IP-Adapter gives it.
    """
    attn: Any = module
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    heads = attn.heads
    hidden = attn.norm_encoder_hidden_states(hidden) if attn.norm_cross else hidden
    q, k = (
        part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (attn.to_q(queries), attn.to_k(hidden))
    )
    weights = (q @ k.transpose(2, 3) * attn.scale).float().softmax(dim=3).mean(dim=1)
    return (weights @ own.to(weights)).transpose(1, 2)
