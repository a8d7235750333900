"""Memory is counted by shapes: what fits where, what is said where it is too little, what leaves the GPU."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from conceptkit.base import memory as sizes
from conceptkit.base import pipeline
from conceptkit.base.architectures import architecture_of_denoiser
from conceptkit.base.memory import LearningPlan, estimate
from conceptkit.data import photos
from conceptkit.errors import BadDevice
from conceptkit.learn import memory
from conceptkit.learn.freeze import gradient_checkpointing
from conceptkit.tuners.targets import find
from tests import documents, tiny
from tests.learning import SEEDS, TINY, draw_photos, method, teach
from tests.test_base import SD15, SDXL

GB = 1e9


def clip(width, layers, heads, vocabulary=49408):
    with torch.device("meta"):
        return CLIPTextModel(
            CLIPTextConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                vocab_size=vocabulary,
            )
        )


def t5():
    with torch.device("meta"):
        return T5EncoderModel(
            T5Config(
                d_model=4096,
                d_ff=10240,
                d_kv=64,
                num_heads=64,
                num_layers=24,
                vocab_size=32128,
                feed_forward_proj="gated-gelu",
            )
        )


def autoencoder():
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )


def lora(denoiser, rank=16):
    """Numbers that learn, by map, of a LoRA on attention."""
    maps = find(denoiser, architecture_of_denoiser(denoiser).presets["attn"])
    return {name: rank * (linear.in_features + linear.out_features) for name, linear in maps.items()}


def first_sd():
    with torch.device("meta"):
        return UNet2DConditionModel(**SD15), [clip(768, 12, 12), autoencoder()]


def sdxl():
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL), [clip(768, 12, 12), clip(1280, 32, 20), autoencoder()]


def flux():
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    return transformer, [clip(768, 12, 12), t5(), autoencoder()]


@pytest.mark.parametrize(
    ("build", "billions", "pixels", "batch", "options", "card"),
    [
        (first_sd, 0.8595, 512, 2, {"dtype": "fp16"}, 6),
        pytest.param(sdxl, 2.5675, 1024, 2, {"dtype": "bf16"}, 12, marks=pytest.mark.slow),
        (flux, 11.9014, 1024, 1, {"dtype": "bf16", "quantization": "bnb-4bit"}, 24),
    ],
    ids=["SD 1.5", "SDXL", "FLUX.1"],
)
def test_each_base_learns_on_the_card_that_is_promised(build, billions, pixels, batch, options, card):
    denoiser, beside = build()
    assert sum(p.numel() for p in denoiser.parameters()) == pytest.approx(billions * 1e9, rel=1e-3)
    plan = LearningPlan(lora(denoiser), pixels, batch, **options)
    found = estimate(denoiser, beside, 8, plan)
    assert found.peak < card * GB, found.text()
    page = (documents.ROOT / "docs" / "how-to" / "memory.md").read_text(encoding="utf-8")
    numbers = found.weights, found.read_once, found.encoding, found.learning, found.activations
    row = " | ".join(f"{size / GB:.1f}" for size in numbers)
    assert f"| {card} GB |" in page and f"| {found.peak / GB:.1f} GB |" in page and f"| {row};" in page
    quantised = {None: 2, "bnb-4bit": 0.5625}[plan.quantization]
    assert found.weights == pytest.approx(billions * 1e9 * quantised, rel=0.01)
    assert found.learning == 16 * sum(plan.maps.values())
    assert found.read_once == 2 * sum(p.numel() for part in beside for p in part.parameters())


def test_without_these_measures_they_would_not_fit():
    denoiser, beside = first_sd()
    plain = LearningPlan(lora(denoiser), 512, 4, "fp32", gradient_checkpointing=False, keeps_encoders=True)
    assert estimate(denoiser, beside, 8, plain).peak > 8 * GB


# counted as it is


def kept(pipe, maps, monkeypatch=None):
    """Bytes that a pass forward of a real UNet keeps, without those of its weights."""
    unet, held = pipe.unet.train(), {}
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}

    def keep(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            held[place] = tensor
        return tensor

    unet.requires_grad_(False)
    for name, linear in unet.named_modules():
        if name in maps:
            linear.weight.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(torch.randn(2, 4, 8, 8).requires_grad_(), torch.ones(2), torch.randn(2, 77, 32))
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def test_activations_are_those_that_a_real_pass_keeps():
    pipe = tiny.pico_sd()
    maps = lora(pipe.unet, 2)
    plan = LearningPlan(maps, 16, 2, "fp32", gradient_checkpointing=False)
    counted = sizes.activation_bytes(pipe.unet, 2, plan)
    assert counted == pytest.approx(kept(pipe, maps), rel=0.05)
    without = sizes.activation_bytes(
        pipe.unet, 2, LearningPlan({}, 16, 2, "fp32", gradient_checkpointing=False)
    )
    assert without < counted
    twice = sizes.activation_bytes(pipe.unet, 2, LearningPlan(maps, 16, 2, "fp32"))
    assert counted / 20 < twice < counted / 2
    assert all(not p.is_meta for p in pipe.unet.parameters()) and not pipe.unet.is_gradient_checkpointing


# on a GPU that is too small


@pytest.fixture
def base():
    return pipeline.of(tiny.pico_sd(), "pico")


@pytest.fixture
def shown(tmp_path):
    return photos.read(draw_photos(tmp_path, SEEDS))


@pytest.fixture
def room(monkeypatch):
    """A GPU of so many bytes."""

    def has(size):
        monkeypatch.setattr(memory, "capacity", lambda device: size)

    return has


@pytest.mark.slow
def test_activations_are_computed_twice_where_the_gpu_is_small(base, room):
    recipe = method("dreambooth")
    more, less = (memory.needed(base, recipe, twice).peak for twice in (False, True))
    assert less < more
    for size, small in ((None, False), (more, False), (more - 1, True)):
        room(size)
        assert memory.saves_activations(base, recipe) == small
        assert bool(memory.notices(base, recipe)) == small
        with gradient_checkpointing(base, recipe):
            assert base.denoiser.is_gradient_checkpointing == small
        assert not base.denoiser.is_gradient_checkpointing
    assert "activations are computed twice (gradient checkpointing)" in memory.notices(base, recipe)[0]


def test_too_little_memory_says_what_is_needed_and_what_would_fit(base, shown, room):
    recipe = replace(method("dreambooth"), train_batch_size=64)
    least = memory.needed(base, recipe, True).peak
    room(least - 1)
    with pytest.raises(BadDevice, match="pico needs about .* GiB: weights .*, and cpu has") as told:
        teach(base, shown, recipe)
    assert str(told.value).endswith("--train-batch-size 1 --set prior_batch_size=1 would fit")
    assert "\n" not in str(told.value)
    room(1000)
    with pytest.raises(BadDevice, match="use a larger one, or a smaller base"):
        teach(base, shown, recipe)


# what leaves the GPU


class Part(torch.nn.Linear):
    """A module that says it is on a GPU, and remembers where it was sent."""

    def __init__(self):
        super().__init__(1, 1)
        self.sent = []

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=torch.device("cuda:0"))

    def to(self, place):
        self.sent.append(str(place))


def test_parts_that_are_not_read_wait_on_the_cpu_and_come_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    vae, encoder = Part(), Part()
    pipe = SimpleNamespace(vae=vae)
    base = SimpleNamespace(device=torch.device("cuda:0"), encoders=((None, encoder),), pipe=pipe)
    with pytest.raises(KeyboardInterrupt), memory.put_away(base, text_encoders=True):
        assert (vae.sent, encoder.sent) == (["cpu"], ["cpu"])
        raise KeyboardInterrupt
    assert vae.sent == encoder.sent == ["cpu", "cuda:0"]
    with memory.put_away(base, text_encoders=False):
        assert encoder.sent == ["cpu", "cuda:0"] and vae.sent[-1] == "cpu"


@pytest.mark.parametrize(
    ("recipe", "texts"),
    [
        (TINY, [False, True]),
        (method("dreambooth"), [False]),
        pytest.param(method("custom-diffusion"), [False], marks=pytest.mark.slow),
        pytest.param(method("textual-inversion"), [False], marks=pytest.mark.slow),
        (method("dreambooth", text_encoder_rank=0, sude_weight=0.4), [True]),
    ],
)
def test_no_step_of_learning_reads_what_was_put_away(base, shown, monkeypatch, recipe, texts):
    asked = []

    @contextlib.contextmanager
    def watched(base, text_encoders):
        def refuse(module, *_):
            raise AssertionError(f"{type(module).__name__} is put away")

        asked.append(text_encoders)
        parts = memory.idle_parts(base, text_encoders)
        hooks = [module.register_forward_pre_hook(refuse) for part in parts for module in part.modules()]
        yield
        for hook in hooks:
            hook.remove()

    monkeypatch.setattr(memory, "put_away", watched)
    teach(base, shown, recipe)
    assert asked == texts


def test_large_pictures_are_encoded_in_smaller_parts(base, monkeypatch):
    from conceptkit.learn import latent_dataset

    pixels = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    counts = []
    base.pipe.vae.encoder.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    whole = latent_dataset.encode(base, pixels)
    assert counts == [8, 1]
    counts.clear()
    monkeypatch.setattr(sizes, "ENCODED_PIXELS", 2 * 16 * 16)
    assert torch.allclose(latent_dataset.encode(base, pixels), whole, atol=1e-5) and counts == [2, 2, 2, 2, 1]


def test_an_autoencoder_that_overflows_in_half_precision_encodes_in_float32():
    from conceptkit.learn import latent_dataset

    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pipe = tiny.pico_sd().to(torch.float16)
    seen = []
    pipe.vae.encoder.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    assert pipe.vae.config.force_upcast
    latent_dataset.encode(pipeline.of(pipe), pixels)
    assert seen == [torch.float32] and pipe.vae.dtype == torch.float16
