"""HunyuanDiT: a bilingual BERT beside T5 behind an MLP; learned rows stand where a prompt fills neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.base.architectures.architecture import Architecture, Call, Condition, Segment
from conceptkit.base.architectures.static import StaticCrossAttention

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LENGTHS = (77, 256)
"""Positions of BERT and of T5 that the pipeline reads."""
CELL, ROTARY_SIZE, ORIGINAL_SIZE = 8, 512, 1024
"""Pixels a cell, of the grid that positions are relative to, and the size that pictures are said to have."""
_ATTENTION = r"\bblocks\.\d+\.attn[12]\.to_(?:q|k|v|out\.0)"


class HunyuanDiT(StaticCrossAttention):
    """Features are BERT's positions, filled up with zeros to T5's width, then T5's; the mask is of both."""

    lower_case = False
    presets: ClassVar[Mapping[str, str]] = {
        **Architecture.presets,
        "qkv": r"\bblocks\.\d+\.attn[12]\.to_[qkv]",
        "attn": _ATTENTION,
        "attn+ff": rf"(?:{_ATTENTION}|\bff\.net\.(?:0\.proj|2))",
    }

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """BERT's and T5's; what stands behind a text is read, the same for all texts."""
        return (Segment(pipe.tokenizer, LENGTHS[0]), Segment(pipe.tokenizer_2, LENGTHS[1]))

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """The same prompt for both encoders."""
        hidden, masks = [], []
        for index, length in enumerate(LENGTHS):
            features, _, mask, _ = pipe.encode_prompt(
                prompt=list(prompts),
                device=device or pipe._execution_device,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                text_encoder_index=index,
            )
            hidden.append(features)
            masks.append(mask)
        clip, t5 = hidden
        wide = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Condition(torch.cat([wide, t5], dim=1), None, torch.cat(masks, dim=1))

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """T5's tell prompts apart; those of BERT are read by a call of their own."""
        return (encoded[0], encoded[1]) if encoded[0].shape[1] == LENGTHS[1] else (None, None)

    def site_features(self, denoiser: nn.Module, condition: Condition) -> Tensor:
        """BERT's features and T5's behind `text_embedder`, and the learned rows where there is no text."""
        assert condition.mask is not None
        model: Any = denoiser
        clip, t5 = condition.hidden.to(model.text_embedding_padding).split(LENGTHS, dim=1)
        read = torch.cat([clip[..., : model.config.cross_attention_dim], model.text_embedder(t5)], dim=1)
        return torch.where(condition.mask.unsqueeze(2).bool(), read, model.text_embedding_padding)

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noise or velocity, without its variance, for a picture that is said to be whole and large."""
        assert condition.mask is not None
        model, (n, _, h, w) = pipe.transformer, noisy.shape
        clip, t5 = condition.hidden.split(LENGTHS, dim=1)
        clip_mask, t5_mask = condition.mask.split(LENGTHS, dim=1)
        sizes = torch.tensor([ORIGINAL_SIZE, ORIGINAL_SIZE, h * CELL, w * CELL, 0, 0]).to(noisy)
        prediction: Tensor = model(
            noisy,
            t.to(noisy.dtype),
            encoder_hidden_states=clip[..., : model.config.cross_attention_dim],
            text_embedding_mask=clip_mask,
            encoder_hidden_states_t5=t5.contiguous(),
            text_embedding_mask_t5=t5_mask,
            image_meta_size=sizes.repeat(n, 1),
            style=torch.zeros(n, dtype=torch.long, device=noisy.device),
            image_rotary_emb=_positions(model, h, w, noisy.device),
            return_dict=False,
        )[0]
        return prediction[:, : noisy.shape[1]]

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """By T5's features."""
        return Call(kwargs["encoder_hidden_states_t5"], tuple(args[0].shape[-2:]))

    def draw_options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """Sizes as they are given."""
        return {"use_resolution_binning": False}


def _positions(model: Any, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rotary embeddings of the patches of latents (h, w), as the pipeline makes them."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    patch = model.config.patch_size
    grid = (h // patch, w // patch)
    crop = get_resize_crop_region_for_grid(grid, ROTARY_SIZE // CELL // patch)
    size = model.inner_dim // model.num_heads
    found: tuple[Tensor, Tensor] = get_2d_rotary_pos_embed(size, crop, grid, device=device, output_type="pt")
    return found


ARCHITECTURE = HunyuanDiT()
