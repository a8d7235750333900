"""Pico pipelines whose denoiser projects text before it reads it: Kolors, DeepFloyd IF and HunyuanDiT."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    IFPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline  # diffusers gives it with sentencepiece
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerFast

from tests.tiny import WORDS, _quiet, scheduler, unet, vae
from tests.transformers_tiny import T5_WIDTH, t5, t5_tokenizer

RARE = "zwx qlm sks"


class LeftTokenizer(PreTrainedTokenizerFast):
    """Reads as ChatGLM's: two marks before a text, and before these what fills up; places are counted too."""

    model_input_names = ("input_ids", "attention_mask", "position_ids")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = super().__call__(*args, **kwargs)
        if isinstance(found["attention_mask"], torch.Tensor):
            found["position_ids"] = (found["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return found


def left_tokenizer() -> LeftTokenizer:
    """Unigrams; unknown pieces and what fills up have one id, as ChatGLM's have."""
    letters = sorted(set("▁ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789<>_,.-'"))
    pieces = [("<unk>", -20.0), ("[gMASK]", 0.0), ("sop", 0.0)]
    pieces += [(f"▁{word}", -5.0) for word in dict.fromkeys([*WORDS.split(), *RARE.split()])]
    pieces += [(letter, -12.0) for letter in letters]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="[gMASK] sop $A", special_tokens=[("[gMASK]", 1), ("sop", 2)]
    )
    marks = {"pad_token": "<unk>", "unk_token": "<unk>", "padding_side": "left"}
    return LeftTokenizer(tokenizer_object=made, model_max_length=10**6, **marks)


def chat_glm(tok: PreTrainedTokenizerFast) -> ChatGLMModel:
    """A decoder of three layers."""
    made = ChatGLMModel(
        ChatGLMConfig(
            num_layers=3,
            padded_vocab_size=len(tok) + 8,
            hidden_size=32,
            ffn_hidden_size=32,
            kv_channels=8,
            num_attention_heads=4,
            multi_query_attention=True,
            multi_query_group_num=2,
            seq_length=256,
            original_rope=True,
        )
    )
    for name, parameter in made.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def pico_kolors(seed: int = 0) -> KolorsPipeline:
    """SDXL's UNet behind a projection of 32 to 48, pooled features of 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = left_tokenizer()
        pipe = KolorsPipeline(
            vae=vae(),
            text_encoder=chat_glm(tok),
            tokenizer=tok,
            unet=unet(
                48,
                encoder_hid_dim=32,
                encoder_hid_dim_type="text_proj",
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
            ),
            scheduler=scheduler(),
        )
    return _quiet(pipe)


def pico_if(seed: int = 0) -> IFPipeline:
    """16 x 16 pixels, noise and its variance, T5 of width 32 behind a projection to 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = t5_tokenizer(77)
        pipe = IFPipeline(
            tokenizer=tok,
            text_encoder=t5(tok),
            unet=UNet2DConditionModel(
                sample_size=16,
                in_channels=3,
                out_channels=6,
                layers_per_block=1,
                block_out_channels=(16, 32),
                down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                attention_head_dim=8,
                norm_num_groups=4,
                cross_attention_dim=16,
                encoder_hid_dim=T5_WIDTH,
                encoder_hid_dim_type="text_proj",
                addition_embed_type="text",
                addition_embed_type_num_heads=4,
                resnet_time_scale_shift="scale_shift",
            ),
            scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        )
    return _quiet(pipe)


def bert_tokenizer() -> BertTokenizer:
    """Pieces with BERT's marks around a text."""
    letters = sorted("abcdefghijklmnopqrstuvwxyz0123456789<>_,.-'")
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries += [*dict.fromkeys([*WORDS.split(), *RARE.split()])]
    entries += [entry for letter in letters for entry in (letter, f"##{letter}")]
    vocabulary = {entry: k for k, entry in enumerate(dict.fromkeys(entries))}
    return BertTokenizer(vocab=vocabulary, model_max_length=77)


def bert(tok: BertTokenizer) -> BertModel:
    """An encoder of two layers, narrower than T5."""
    return BertModel(
        BertConfig(
            vocab_size=len(tok) + 8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
        ),
        add_pooling_layer=False,
    ).eval()


def pico_hunyuan(seed: int = 0) -> HunyuanDiTPipeline:
    """BERT of width 16 beside T5 of 32, velocity and its variance on 8 x 8 latents; 8 pixels a cell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = bert_tokenizer(), t5_tokenizer(256)
        pipe = HunyuanDiTPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8,) * 4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=64,
            ),
            text_encoder=bert(first),
            tokenizer=first,
            transformer=HunyuanDiT2DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                patch_size=2,
                sample_size=8,
                hidden_size=32,
                num_layers=4,
                cross_attention_dim=16,
                cross_attention_dim_t5=T5_WIDTH,
                pooled_projection_dim=16,
            ),
            scheduler=DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.02,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            text_encoder_2=t5(second),
            tokenizer_2=second,
        )
    return _quiet(pipe)


MAKERS = {"hunyuan-dit": pico_hunyuan, "if": pico_if, "kolors": pico_kolors}
"""Families whose denoiser projects text before its attention reads it."""
