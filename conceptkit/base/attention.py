"""Cross-attention: what its queries attend to."""

from typing import Any

from torch import Tensor, nn

from conceptkit.base.architectures import architecture_of_denoiser


def kv_maps(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """Name -> Linear of the maps of a denoiser that read text features, see `Architecture.text_site`."""
    return architecture_of_denoiser(denoiser).text_site(denoiser)


def attention_shares(
    module: nn.Module,
    queries: Tensor,
    hidden: Tensor | tuple[Tensor, ...],
    own: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """Attention of each query (B, P, c), the mean over heads, added up by the weights `own`: (R, N, P).

    hidden: what it attends to (B, T, d), or a tuple that begins with it, as an IP-Adapter gives it.
    own (R, T, N): of the rows that are looked at. rows (R,): which these are; all if None.
    """
    weights = attention_weights(module, queries, hidden, rows)
    return (weights @ own.to(weights)).transpose(1, 2)


def attention_weights(
    module: nn.Module, queries: Tensor, hidden: Tensor | tuple[Tensor, ...], rows: Tensor | None = None
) -> Tensor:
    """Attention of each query (B, P, c) to each of `hidden` (B, T, d), the mean over heads: (R, P, T).

    rows (R,): those of the batch that are looked at; all if None.
    """
    attn: Any = module
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    heads = attn.heads
    hidden = attn.norm_encoder_hidden_states(hidden) if attn.norm_cross else hidden
    q, k = (
        part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (attn.to_q(queries), attn.to_k(hidden))
    )
    if rows is not None:  # not before: what is attached to the maps may tell rows by their numbers
        q, k = q[rows], k[rows]
    return (q @ k.transpose(2, 3) * attn.scale).float().softmax(dim=3).mean(dim=1)
