"""Pico pipelines whose prompts are read by language models, or by T5 alone: the rest of the families."""

from __future__ import annotations

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Gemma2Config,
    Gemma2Model,
    MistralConfig,
    MistralModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
)

from tests.tiny import WORDS, _quiet
from tests.transformers_tiny import autoencoder, t5, t5_tokenizer

WIDTH = 32
RARE = "sks ohw pll olx wto xjk"
"""Short words that no caption has."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Byte pairs as Qwen has them: a word behind a space is another token than the word alone."""
    letters = sorted(ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys([*WORDS.split(), *RARE.split()]):
        for written in (word, f"Ġ{word}"):
            for i in range(1, len(written)):
                merges.setdefault((written[:i], written[i]))
    entries = [*letters, *dict.fromkeys(a + b for a, b in merges)]
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {entry: i for i, entry in enumerate([*dict.fromkeys(entries), *marks])}
    made = Qwen2Tokenizer(vocab=vocab, merges=list(merges), model_max_length=1200)
    made.add_special_tokens({"additional_special_tokens": marks[1:]})
    made.chat_template = CHAT
    return made


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Unigrams with Gemma's marks: <bos> before the text, nothing behind it."""
    letters = sorted(set("▁ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789<>_,.-'"))
    pieces = [("<pad>", 0.0), ("<eos>", 0.0), ("<bos>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"▁{word}", -5.0) for word in dict.fromkeys([*WORDS.split(), *RARE.split()])]
    pieces += [(letter, -12.0) for letter in letters]
    made = Tokenizer(models.Unigram(pieces, unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    marks = {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **marks)


def _shape(vocabulary: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary + 8,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
    }


def qwen(tok: Qwen2Tokenizer, kind: type[Qwen3Model] = Qwen3Model) -> Qwen3Model:
    """A decoder of three layers."""
    return kind(Qwen3Config(**_shape(len(tok)), pad_token_id=tok.pad_token_id))


def mistral(tok: Qwen2Tokenizer) -> MistralModel:
    """The same of Mistral's kind."""
    return _DeepMistral(MistralConfig(**_shape(len(tok)), pad_token_id=tok.pad_token_id))


def gemma(tok: PreTrainedTokenizerFast) -> Gemma2Model:
    """The same of Gemma's kind, which scales its token table."""
    marks = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    return Gemma2Model(Gemma2Config(**_shape(len(tok)), **marks))


def pico_qwen_image(seed: int = 0) -> QwenImagePipeline:
    """8 x 8 latents of 4 channels packed to 4 x 4 of 16; the autoencoder is of video frames."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = qwen_tokenizer()
        pipe = QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 2],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[0.1, -0.2, 0.0, 0.3],
                latents_std=[1.5, 2.0, 1.0, 0.7],
            ),
            text_encoder=qwen(tok),
            tokenizer=tok,
            transformer=QwenImageTransformer2DModel(
                patch_size=2,
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(4, 6, 6),
            ),
        )
    before = pipe.prompt_template_encode.partition("<|im_start|>user")[0]
    pipe.prompt_template_encode_start_idx = len(tok(f"{before}<|im_start|>user\n").input_ids)
    pipe.default_sample_size = 8
    return _quiet(pipe)


def pico_z_image(seed: int = 0) -> ZImagePipeline:
    """8 x 8 latents of 4 channels; prompts are a list."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = qwen_tokenizer()
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[512, 32, 32],
        )
        for parameter in (transformer.x_pad_token, transformer.cap_pad_token):
            torch.nn.init.normal_(parameter, std=0.1)
        pipe = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(4),
            text_encoder=qwen(tok),
            tokenizer=tok,
            transformer=transformer,
        )
    pipe.default_sample_size = 8
    return _quiet(pipe)


def pico_lumina2(seed: int = 0) -> Lumina2Pipeline:
    """8 x 8 latents of 4 channels; Gemma behind an instruction."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = gemma_tokenizer()
        pipe = Lumina2Pipeline(
            transformer=Lumina2Transformer2DModel(
                sample_size=8,
                in_channels=4,
                hidden_size=32,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=2,
                num_kv_heads=1,
                multiple_of=16,
                axes_dim_rope=(4, 6, 6),
                axes_lens=(256, 32, 32),
                cap_feat_dim=WIDTH,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
            vae=autoencoder(4),
            text_encoder=gemma(tok),
            tokenizer=tok,
        )
    pipe.vae_scale_factor = 2
    pipe.system_prompt = "a picture of"
    return _quiet(pipe)


def pico_sana(seed: int = 0) -> SanaPipeline:
    """16 x 16 latents of 4 channels, 2 pixels a cell; Gemma behind an MLP and a norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = gemma_tokenizer()
        pipe = SanaPipeline(
            tokenizer=tok,
            text_encoder=gemma(tok),
            vae=AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_types=("ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                encoder_qkv_multiscales=((), (5,)),
                decoder_qkv_multiscales=((), (5,)),
                encoder_layers_per_block=(1, 1),
                decoder_layers_per_block=[1, 1],
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                decoder_norm_types="rms_norm",
                decoder_act_fns="silu",
                scaling_factor=0.41,
            ),
            transformer=SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=8,
                num_cross_attention_heads=2,
                cross_attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=WIDTH,
                sample_size=16,
            ),
            scheduler=DPMSolverMultistepScheduler(
                use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
            ),
        )
    return _quiet(pipe)


def pico_auraflow(seed: int = 0) -> AuraFlowPipeline:
    """8 x 8 latents of 4 channels, T5 of width 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = t5_tokenizer(256)
        pipe = AuraFlowPipeline(
            tokenizer=tok,
            text_encoder=t5(tok),
            vae=autoencoder(4, shift=None),
            transformer=AuraFlowTransformer2DModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                caption_projection_dim=32,
                pos_embed_max_size=64,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    return _quiet(pipe)


def pico_chroma(seed: int = 0) -> ChromaPipeline:
    """8 x 8 latents of 4 channels packed to 4 x 4 of 16, T5 of width 32 with a mask."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = t5_tokenizer()
        pipe = ChromaPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=autoencoder(4),
            text_encoder=t5(tok),
            tokenizer=tok,
            transformer=ChromaTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(4, 4, 8),
                approximator_num_channels=8,
                approximator_hidden_dim=16,
                approximator_layers=1,
            ),
        )
    pipe.default_sample_size = 8
    return _quiet(pipe)


def _flux2_parts(guidance: bool) -> dict[str, object]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": AutoencoderKLFlux2(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=16,
        ),
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance,
        ),
    }


def pico_flux2(seed: int = 0) -> DiffusionPipeline:
    """Three layers of a Mistral of width 32, 4 x 4 patches of 16 channels, guidance as an input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = qwen_tokenizer()
        pipe = Flux2Pipeline(text_encoder=mistral(tok), tokenizer=tok, **_flux2_parts(guidance=True))
    return _flux2(pipe)


def pico_klein(seed: int = 0) -> DiffusionPipeline:
    """The same of a Qwen, guided by two calls."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = qwen_tokenizer()
        pipe = Flux2KleinPipeline(
            text_encoder=qwen(tok, DeepQwen), tokenizer=tok, **_flux2_parts(guidance=False)
        )
    return _flux2(pipe)


def _flux2(pipe: DiffusionPipeline) -> DiffusionPipeline:
    bn = pipe.vae.bn
    bn.running_mean.copy_(torch.linspace(-0.3, 0.3, 16))
    bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    pipe.default_sample_size = 8
    return _quiet(pipe)


class _DeepMistral(MistralModel):
    """Three layers, given as if they were thirty, of which FLUX.2 reads three."""

    def forward(self, *args, **kwargs):
        return _deep(super().forward(*args, **kwargs))


class DeepQwen(Qwen3Model):
    """The same of a Qwen."""

    def forward(self, *args, **kwargs):
        return _deep(super().forward(*args, **kwargs))


def _deep(output):
    output.hidden_states = tuple(output.hidden_states[min(k // 9, 3)] for k in range(31))
    return output


MAKERS = {
    "auraflow": pico_auraflow,
    "chroma": pico_chroma,
    "flux2": pico_flux2,
    "flux2 klein": pico_klein,
    "lumina2": pico_lumina2,
    "qwen-image": pico_qwen_image,
    "sana": pico_sana,
    "z-image": pico_z_image,
}
"""Families whose prompts language models read, or T5 alone."""
