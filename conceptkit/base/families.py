"""Families of bases: what differs between them, a row each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conceptkit.extension_table import ExtensionTable

PACKAGE = Path(__file__).parents[1]
STORYBOOK = "storybook"
STORYBOOK_FLOW = "storybook-flow"
_STORYBOOK_NOUNS = "dog cat rabbit bird fish robot car boat house gate teapot candle chair flower"


@dataclass(frozen=True)
class Family:
    """What is known of all bases of a family.

    guidance_scale: of classifier-free guidance (2207.12598).
    pag_scale: of perturbed-attention guidance (2403.17377); 0 is none.
    pag_layers: where self-attention is perturbed for it, as diffusers names layers.
    side_by_side: whether several things are better drawn in a window each.
    isolate_concepts: whether words of several concepts in one frame are better encoded apart.
    detail: whether concepts in one frame are better drawn at full size and set in.
    class_nouns: all class nouns that it knows; () when they are more than can be listed.
    captions: the file of captions for regularisation.
    flatness: drawings in flat colours are all that it knows; mean flatness of photos below which it says so.
    weights: the folder of the pipeline, for a base that comes with the package.
    fingerprint: a file with the `Fingerprint` of its base; a pipeline that is this base, or a relative of it,
        is of the family whatever it is called.
    bases: which ones these are, for the table of `conceptkit bases`.
    denoiser: the class of its UNet or transformer, by which a pipeline is of the family.
    pipeline: how the class of its pipeline begins, where several families have one class of denoiser.
    pixels: on a side of what it draws. parameters: of its largest denoiser, in billions.
    lora_loader: plain diffusers loads a LoRA into its pipeline.
    cross_attention: whether pictures look at text in layers of their own, `attn2`.
    """

    name: str
    guidance_scale: float = 7.5
    pag_scale: float = 0.0
    pag_layers: tuple[str, ...] = ("mid",)
    side_by_side: bool = False
    isolate_concepts: bool = False
    detail: bool = False
    class_nouns: tuple[str, ...] = ()
    captions: Path = PACKAGE / "wordlists" / "general.txt"
    flatness: float = 0.0
    weights: Path | None = None
    fingerprint: Path | None = None
    bases: str = ""
    denoiser: str = "UNet2DConditionModel"
    pipeline: str = ""
    pixels: int = 512
    parameters: float = 0.0
    lora_loader: bool = True
    cross_attention: bool = True

    @property
    def has_unet(self) -> bool:
        """Whether pictures look at text in layers of a UNet, which ViCo, windows and regions
        without a layout need."""
        return self.denoiser == "UNet2DConditionModel" and self.cross_attention


FAMILIES: ExtensionTable[Family] = ExtensionTable("family of bases", "conceptkit.families")
DEFAULT = FAMILIES.register(
    "stable-diffusion",
    Family("stable-diffusion", bases="Stable Diffusion 1 and 2", parameters=0.86),
)
FAMILIES.register(
    STORYBOOK,
    Family(
        STORYBOOK,
        guidance_scale=3.5,
        pag_scale=1.5,
        pag_layers=("attn1",),
        isolate_concepts=True,
        detail=True,
        class_nouns=tuple(_STORYBOOK_NOUNS.split()),
        captions=PACKAGE / "storybook" / "captions.txt",
        flatness=0.65,  # photographs lie between 0.3 and 0.6, the storybook's drawings above 0.7
        weights=PACKAGE / "storybook" / "weights" / "pipeline",
        fingerprint=PACKAGE / "storybook" / "weights" / "fingerprint.json",
        bases="the small base that comes with the package",
        pixels=64,
        parameters=0.005,
    ),
)
FAMILIES.register(
    STORYBOOK_FLOW,
    Family(
        STORYBOOK_FLOW,
        guidance_scale=4.0,
        class_nouns=tuple(_STORYBOOK_NOUNS.split()),
        captions=PACKAGE / "storybook" / "captions.txt",
        flatness=0.65,
        weights=PACKAGE / "storybook" / "weights" / "flow",
        fingerprint=PACKAGE / "storybook" / "weights" / "flow" / "fingerprint.json",
        bases="a second small base in the package, of joint attention and flow",
        denoiser="SD3Transformer2DModel",
        pixels=64,
        parameters=0.0055,
    ),
)
for _row in (
    Family("sdxl", bases="Stable Diffusion XL", pipeline="StableDiffusionXL", pixels=1024, parameters=2.6),
    Family("kolors", guidance_scale=5.0, bases="Kolors", pipeline="Kolors", pixels=1024, parameters=2.6),
    Family(
        "if",
        guidance_scale=7.0,
        bases="DeepFloyd IF, stage I",
        pipeline="IF",
        pixels=64,
        parameters=4.3,
        cross_attention=False,
    ),
    Family(
        "hunyuan-dit",
        guidance_scale=5.0,
        bases="HunyuanDiT",
        denoiser="HunyuanDiT2DModel",
        pixels=1024,
        parameters=1.5,
        lora_loader=False,
    ),
    Family(
        "sd3",
        guidance_scale=7.0,
        bases="Stable Diffusion 3 and 3.5",
        denoiser="SD3Transformer2DModel",
        parameters=8.1,
        pixels=1024,
    ),
    Family(
        "flux",
        guidance_scale=3.5,
        bases="FLUX.1",
        denoiser="FluxTransformer2DModel",
        parameters=11.9,
        pixels=1024,
    ),
    Family(
        "flux2",
        guidance_scale=4.0,
        bases="FLUX.2 dev and klein",
        denoiser="Flux2Transformer2DModel",
        parameters=32.2,
        pixels=1024,
    ),
    Family(
        "qwen-image",
        guidance_scale=4.0,
        bases="Qwen-Image",
        denoiser="QwenImageTransformer2DModel",
        parameters=20.4,
        pixels=1024,
    ),
    Family(
        "z-image",
        guidance_scale=5.0,
        bases="Z-Image",
        denoiser="ZImageTransformer2DModel",
        parameters=6.2,
        pixels=1024,
    ),
    Family(
        "chroma",
        guidance_scale=5.0,
        bases="Chroma",
        denoiser="ChromaTransformer2DModel",
        parameters=8.9,
        pixels=1024,
    ),
    Family(
        "auraflow",
        guidance_scale=3.5,
        bases="AuraFlow",
        denoiser="AuraFlowTransformer2DModel",
        parameters=6.8,
        pixels=1024,
    ),
    Family(
        "lumina2",
        guidance_scale=4.0,
        bases="Lumina Image 2",
        denoiser="Lumina2Transformer2DModel",
        parameters=2.6,
        pixels=1024,
    ),
    Family(
        "pixart",
        guidance_scale=4.5,
        bases="PixArt alpha and Sigma",
        denoiser="PixArtTransformer2DModel",
        pixels=1024,
        parameters=0.61,
        lora_loader=False,
    ),
    Family(
        "sana",
        guidance_scale=4.5,
        bases="Sana",
        denoiser="SanaTransformer2DModel",
        pixels=1024,
        parameters=1.6,
    ),
):
    FAMILIES.register(_row.name, _row)


METHODS = ("custom", "custom-diffusion", "dreambooth", "dreambooth-full", "textual-inversion")
"""The methods that learn on every family."""


def methods_of(row: Family) -> list[str]:
    """The built-in methods that learn on a family; ViCo looks at a photo on a UNet's way up."""
    return [*METHODS, *(["vico"] if row.has_unet else [])]


def family_of_pipeline(pipeline: str, denoiser: str) -> Family | None:
    """The family of a pipeline, by the names of its class and of its denoiser's; the closest row."""
    fits = [
        row
        for row in FAMILIES.values()
        if row.weights is None and row.denoiser == denoiser and pipeline.startswith(row.pipeline)
    ]
    return max(fits, key=lambda row: len(row.pipeline), default=None)


def family_of(name: str) -> Family:
    """The family of the base of that name: its own where it comes with the package, else the default."""
    family = FAMILIES.get(name)
    return family if family is not None and family.weights is not None else DEFAULT
