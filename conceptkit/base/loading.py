"""Pipelines from where they are kept: a hub id, a diffusers folder, or one checkpoint file."""

from __future__ import annotations

import contextlib
import importlib.util
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from conceptkit.base.architectures import GUIDE, check_denoiser_class
from conceptkit.base.families import FAMILIES, STORYBOOK, family_of
from conceptkit.base.hub import HUB_ID, hub_error
from conceptkit.base.load_options import LoadOptions
from conceptkit.base.quantization import check_possible, quantization_config
from conceptkit.errors import BadBase, BadDevice, ConceptError
from conceptkit.registry.names import nearest
from conceptkit.registry.paths import expanded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
USABLE = "use a text-to-image pipeline of a family that `conceptkit bases` lists"
CHECKPOINT = ".safetensors"
OLD_CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Source:
    """Where a base is loaded from. local: whether that is on this machine; file: whether it is one file."""

    name: str
    path: str
    local: bool
    file: bool = False


def locate(name: str) -> Source:
    """Where the base of that name is. Raises BadBase when there is nothing of it."""
    if weights := family_of(name).weights:
        if not weights.is_dir():
            raise BadBase(f"This installation lacks the {name} base; install conceptkit again")
        return Source(name, str(weights), local=True)
    path = expanded(name)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise BadBase(f"The folder {name!r} is no diffusers pipeline; give one with a model_index.json")
        return Source(name, str(path), local=True)
    if path.is_file():
        if path.suffix.lower() in OLD_CHECKPOINTS:
            raise BadBase(
                f"{name!r} may run code when it is read, as all {path.suffix} files may; give the same model "
                f"as {CHECKPOINT}"
            )
        if path.suffix.lower() != CHECKPOINT:
            raise BadBase(f"The file {name!r} is no checkpoint; give a {CHECKPOINT} file or a folder")
        return Source(name, str(path), local=True, file=True)
    if HUB_ID.fullmatch(name) and not name.lower().endswith((CHECKPOINT, *OLD_CHECKPOINTS)):
        return Source(name, name, local=False)
    near = nearest(name, [own for own, row in FAMILIES.items() if row.weights is not None])
    raise BadBase(
        f"There is no base {name!r}; {f'did you mean {near!r}? If not, ' if near else ''}give a diffusers "
        f"folder, a {CHECKPOINT} file, owner/model or {STORYBOOK!r}"
    )


def read(source: Source, options: LoadOptions, device: str | None) -> DiffusionPipeline:
    """The pipeline, on the device that was asked for.

    Raises BadBase where it cannot be read, or is of no known family; BadDevice or BadRecipe where this
    machine cannot have it in the way that was asked for.
    """
    _check_offload(options.offload, device)
    with quiet():
        pipe = _from_file(source, options) if source.file else _from_folder(source, options, device)
    pipe.set_progress_bar_config(disable=True)
    return _placed(pipe, options.offload, device)


def _from_folder(source: Source, options: LoadOptions, device: str | None) -> DiffusionPipeline:
    from diffusers import AutoPipelineForText2Image, DiffusionPipeline

    try:
        config = DiffusionPipeline.load_config(source.path, local_files_only=source.local)
        part = _check_family(config)
        # A part that a folder has not, as SD3's may be without T5, must be given as None.
        more: dict[str, Any] = {part: None for part, kind in config.items() if kind == [None, None]}
        if options.quantization:
            check_possible(options.quantization, device or "cpu")
            empty = denoiser_on_meta(source, part, config[part][1])
            more["quantization_config"] = quantization_config(
                options.quantization, part, empty, DTYPES[options.dtype]
            )
        # Pipelines that have a checker accept its absence; the others warn about unknown arguments.
        if "safety_checker" in config:
            more |= {"safety_checker": None, "requires_safety_checker": False}
        pipe: DiffusionPipeline = AutoPipelineForText2Image.from_pretrained(
            source.path, dtype=DTYPES[options.dtype], local_files_only=source.local, **more
        )
    except ConceptError:
        raise
    except Exception as error:  # loaders raise nearly anything at damaged files
        if not source.local and (known := hub_error(source.name, error)):
            raise known from error
        advice = USABLE if source.local else "there is no such folder here, so check the id and the network"
        raise BadBase(f"{source.name!r} cannot be read as a text-to-image pipeline; {advice}") from error
    return pipe


def _check_family(config: dict[str, Any]) -> str:
    """The part of a pipeline that is the denoiser. Raises BadBase when it is of no known family, or needs a
    library that is not installed, as Kolors' tokenizer needs sentencepiece."""
    import diffusers

    pipeline = str(config.get("_class_name"))
    needed = getattr(getattr(diffusers, pipeline, None), "_backends", ())
    if missing := [library for library in needed if importlib.util.find_spec(library) is None]:
        raise BadBase(
            f"A {pipeline} needs {' and '.join(missing)}, which is not installed; "
            f"run pip install {' '.join(missing)}"
        )
    for part in ("transformer", "unet"):
        name = (config.get(part) or (None, None))[1]
        if name is not None:
            check_denoiser_class(name)
            return part
    return "unet"


def denoiser_on_meta(source: Source, part: str, class_name: str) -> torch.nn.Module:
    """The denoiser of a pipeline without its weights, for names and shapes."""
    import diffusers

    kind = getattr(diffusers, class_name)
    config = kind.load_config(source.path, subfolder=part, local_files_only=source.local)
    with torch.device("meta"):
        made: torch.nn.Module = kind.from_config(config)
    return made


def _from_file(source: Source, options: LoadOptions) -> DiffusionPipeline:
    """A checkpoint in the layout of its authors; what is not in it comes from the folder of its config."""
    import diffusers

    if options.quantization:
        raise BadBase(
            f"quantization = {options.quantization} is for diffusers folders and hub ids, and {source.name} "
            "is one file; leave it out, or give the model as a folder"
        )
    config = _config_of(source)
    try:
        index = diffusers.DiffusionPipeline.load_config(str(config))
        _check_family(index)
        kind = getattr(diffusers, index["_class_name"])
        checker = {"safety_checker": None} if "safety_checker" in index else {}
        pipe: DiffusionPipeline = kind.from_single_file(
            source.path, config=str(config), dtype=DTYPES[options.dtype], local_files_only=True, **checker
        )
    except ConceptError:
        raise
    except Exception as error:
        raise BadBase(
            f"{source.name!r} cannot be read with the configuration in {config}: "
            f"{str(error).strip().partition(chr(10))[0].rstrip('.')}; put the folder of the base that it was "
            f"made from there, or {USABLE}"
        ) from error
    return pipe


def _config_of(source: Source) -> Path:
    """The folder beside a checkpoint that is called like it, or that of the base it was made from."""
    import huggingface_hub
    from diffusers.loaders import single_file_utils

    beside = Path(source.path).with_suffix("")
    if (beside / "model_index.json").is_file():
        return beside
    kind = _kind_of(source)
    known = single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind, {})
    repository = known.get("pretrained_model_name_or_path")
    if kind is None or repository is None:
        raise BadBase(
            f"{source.name!r} is a checkpoint of no family that is known; put the diffusers folder of its "
            f"base, with a model_index.json, at {beside}, or see {GUIDE}"
        )
    try:
        return Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
    except Exception as error:  # by what it is not found is told in many ways
        raise BadBase(
            f"{source.name!r} has weights alone, and how they are put together is in {repository}: run "
            f"`hf download {repository}` once, or put that folder at {beside}"
        ) from error


class _Shape:
    """As much of a tensor as the kind of a checkpoint is known by."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = tuple(shape)


def _kind_of(source: Source) -> str | None:
    """What diffusers calls the kind of a checkpoint; None where its names are of none. Reads no weights."""
    from diffusers.loaders import single_file_utils
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source.path, "pt") as file:
            shapes = {name: _Shape(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        raise BadBase(f"{source.name!r} is damaged or no {CHECKPOINT} file; download it again") from error
    kind: str = single_file_utils.infer_diffusers_model_type(shapes)
    # What is nothing else is called version 1.
    if kind == "v1" and not any(name.startswith("model.diffusion_model.input_blocks") for name in shapes):
        return None
    return kind


def _check_offload(offload: str | None, device: str | None) -> None:
    if offload and (device or "cpu").partition(":")[0] == "cpu":
        raise BadDevice(
            f"offload = {offload} keeps parts on the CPU while a GPU works, and the device here is the CPU; "
            "leave it out"
        )


def _placed(pipe: DiffusionPipeline, offload: str | None, device: str | None) -> DiffusionPipeline:
    """On the device, or waiting for it."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "group":
        onto = torch.device(device or "cpu")
        streamed = {"use_stream": True} if onto.type == "cuda" else {}
        pipe.enable_group_offload(
            onload_device=onto, offload_device=torch.device("cpu"), offload_type="leaf_level", **streamed
        )
    elif device:
        pipe = pipe.to(device)
    return pipe


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the libraries underneath while a pipeline loads."""
    import diffusers.utils.logging as below
    import transformers.utils.logging as beside

    shown = [(library, library.is_progress_bar_enabled()) for library in (below, beside)]
    for library, _ in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was_shown in shown:
            if was_shown:
                library.enable_progress_bar()
