"""Pico pipelines of transformers: Stable Diffusion 3, FLUX, PixArt and Sana in miniature, seeded."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from tests.tiny import WORDS, _quiet, text_encoder, tokenizer

T5_WIDTH = 32


def t5_tokenizer(length: int = 512) -> PreTrainedTokenizerFast:
    """A unigram tokenizer with T5's marks: no beginning, </s> at the end, <pad> behind it."""
    letters = sorted({letter for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789<>_,.-'"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"▁{word}", -5.0) for word in dict.fromkeys(WORDS.split())]
    pieces += [(f"▁{rare}", -11.0) for rare in ("zwx", "qlm", "sks")]
    pieces += [(letter, -12.0) for letter in letters]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
    )


def t5(tok: PreTrainedTokenizerFast) -> T5EncoderModel:
    """An encoder of two layers; like the real one it has some more rows than its tokenizer has words."""
    config = T5Config(vocab_size=len(tok) + 8, d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()


def autoencoder(channels: int, shift: float | None = 0.06) -> AutoencoderKL:
    """2 pixels a cell; latents are scaled, and shifted where the pipeline does so."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def pico_sd3(seed: int = 0, *, with_t5: bool = True) -> StableDiffusion3Pipeline:
    """Two CLIPs of widths 12 and 16 beside one another, T5 of width 32, 8 x 8 latents of 4 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = tokenizer(), tokenizer(pad="!")
        third = t5_tokenizer() if with_t5 else None
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=T5_WIDTH,
                caption_projection_dim=32,
                pooled_projection_dim=32,
                pos_embed_max_size=16,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(4),
            text_encoder=text_encoder(first, 12, projected=True),
            tokenizer=first,
            text_encoder_2=text_encoder(second, 16, projected=True),
            tokenizer_2=second,
            text_encoder_3=t5(third) if third is not None else None,
            tokenizer_3=third,
        )
    return _quiet(pipe)


def pico_flux(seed: int = 0, *, guidance: bool = True) -> FluxPipeline:
    """CLIP pooled, T5 of width 32, 8 x 8 latents of 4 channels packed to 4 x 4 of 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = tokenizer(), t5_tokenizer()
        pipe = FluxPipeline(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                pooled_projection_dim=16,
                guidance_embeds=guidance,
                axes_dims_rope=(4, 4, 8),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=autoencoder(4),
            text_encoder=text_encoder(first, 16),
            tokenizer=first,
            text_encoder_2=t5(second),
            tokenizer_2=second,
        )
    pipe.default_sample_size = 8
    return _quiet(pipe)


def pico_pixart(seed: int = 0) -> PixArtSigmaPipeline:
    """T5 of width 32 behind an MLP, noise and its variance on 8 x 8 latents of 4 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = t5_tokenizer(300)
        pipe = PixArtSigmaPipeline(
            tokenizer=tok,
            text_encoder=t5(tok),
            vae=autoencoder(4, shift=None),
            transformer=PixArtTransformer2DModel(
                num_attention_heads=4,
                attention_head_dim=8,
                in_channels=4,
                out_channels=8,
                num_layers=2,
                cross_attention_dim=32,
                sample_size=8,
                patch_size=2,
                caption_channels=T5_WIDTH,
                use_additional_conditions=False,
            ),
            scheduler=DPMSolverMultistepScheduler(),
        )
    return _quiet(pipe)
