"""Files of other programs, written as their formats are specified, with what they add to each weight."""

import torch
from torch import Tensor

from conceptkit.base import pipeline


def linear_maps(pipe, pattern=("attn1.to_q", "attn2.to_k", "attn2.to_v", "ff.net.2")) -> dict[str, Tensor]:
    """Name -> weight of some maps of a UNet."""
    return {
        name: module.weight.detach()
        for name, module in pipe.unet.named_modules()
        if name.endswith(tuple(pattern)) and isinstance(module, torch.nn.Linear)
    }


def convolutions(pipe) -> dict[str, Tensor]:
    """Name -> weight of convolutions of 1 and of 3 cells."""
    found = {
        name: module.weight.detach()
        for name, module in pipe.unet.named_modules()
        if isinstance(module, torch.nn.Conv2d) and name.endswith(("proj_in", "conv1", "downsamplers.0.conv"))
    }
    assert {weight.shape[-1] for weight in found.values()} == {1, 3}
    return found


class Draw:
    """Random matrices from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=self.generator)


def kohya(name: str) -> str:
    """A UNet's module in kohya's files for SD 1."""
    return "lora_unet_" + name.replace(".", "_")


def lora(pipe, style: str = "kohya", seed: int = 0, convolution: bool = False):
    """(tensors, map -> addition): a LoRA of mixed ranks and alphas.

    style: "kohya", "peft" (diffusers' keys of today) or "old" (its attention processors).
    """
    draw, tensors, added = Draw(seed), {}, {}
    ends = (
        ("to_q", "to_k", "to_v", "to_out.0") if style == "old" else ("attn2.to_k", "attn2.to_v", "ff.net.2")
    )
    weights = linear_maps(pipe, ends)
    weights |= convolutions(pipe) if convolution else {}
    for number, (name, weight) in enumerate(weights.items()):
        rank, o = 1 + number % 3, weight.shape[0]
        alpha = float(rank if style == "old" else 0.5 * (1 + number % 4))
        up, down = draw(o, rank), draw(rank, *weight.shape[1:])
        added[name] = alpha / rank * (up @ down.flatten(1)).view_as(weight)
        if weight.ndim == 4:
            up = up[:, :, None, None]
        if style == "kohya":
            key = kohya(name)
            tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        elif style == "peft":
            tensors |= {f"unet.{name}.lora_B.weight": up, f"unet.{name}.lora_A.weight": down}
            tensors[f"unet.{name}.alpha"] = torch.tensor(alpha)
        else:
            layer, _, end = name.replace(".to_out.0", ".to_out").rpartition(".")
            key = f"unet.{layer}.processor.{end}_lora"
            tensors |= {f"{key}.up.weight": up, f"{key}.down.weight": down}
    return tensors, added


def loha(pipe, seed: int = 0):
    """LyCORIS LoHa on linear maps, and in Tucker form on convolutions."""
    draw, tensors, added = Draw(seed), {}, {}
    for name, weight in (linear_maps(pipe) | convolutions(pipe)).items():
        key, o, i = kohya(name), weight.shape[0], weight.shape[1]
        if weight.ndim == 4 and weight.shape[-1] > 1:
            cores = [draw(2, 2, *weight.shape[2:]) for _ in "12"]
            sides = [(draw(2, o), draw(2, i)) for _ in "12"]
            parts = [
                torch.einsum("ijkl,jr,ip->prkl", t, b, a) for t, (a, b) in zip(cores, sides, strict=True)
            ]
            tensors |= {f"{key}.hada_t{n}": t for n, t in zip("12", cores, strict=True)}
        else:
            sides = [(draw(o, 2), draw(2, weight[0].numel())) for _ in "12"]
            parts = [(a @ b).view_as(weight) for a, b in sides]
        for n, (a, b) in zip("12", sides, strict=True):
            tensors |= {f"{key}.hada_w{n}_a": a, f"{key}.hada_w{n}_b": b}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
        added[name] = 0.5 * parts[0] * parts[1]
    return tensors, added


def lokr(pipe, seed: int = 0):
    """LyCORIS LoKr: the first factor whole, the second whole or of rank 2."""
    draw, tensors, added = Draw(seed), {}, {}
    for number, (name, weight) in enumerate((linear_maps(pipe) | convolutions(pipe)).items()):
        key, (o, i) = kohya(name), weight.shape[:2]
        first, rest = draw(2, 2), weight.shape[2:]
        tensors[f"{key}.lokr_w1"] = first
        if number % 2:
            second, scale = draw(o // 2, i // 2, *rest), 1.0
            tensors[f"{key}.lokr_w2"] = second
        else:
            a, b, scale = draw(o // 2, 2), draw(2, i // 2 * rest.numel()), 0.25
            second = (a @ b).view(o // 2, i // 2, *rest)
            tensors |= {f"{key}.lokr_w2_a": a, f"{key}.lokr_w2_b": b.view(2, i // 2, *rest)}
        tensors[f"{key}.alpha"] = torch.tensor(0.5)
        first = first.view(2, 2, *[1] * len(rest))
        added[name] = scale * torch.kron(first, second)
    return tensors, added


def dora(pipe, rows: bool = True, seed: int = 0):
    """kohya's DoRA, with magnitudes of rows or of columns."""
    tensors, added = lora(pipe, seed=seed)
    draw = Draw(seed + 1)
    for name, weight in linear_maps(pipe).items():
        if name in added:
            moved, dim = weight + added[name], 1 if rows else 0
            norm = moved.norm(dim=dim, keepdim=True)
            magnitude = norm * (1 + draw(*norm.shape))
            tensors[f"{kohya(name)}.dora_scale"] = magnitude
            added[name] = moved * magnitude / norm - weight
    return tensors, added


def widths(pipe) -> list[int]:
    """Of the embeddings of each text encoder."""
    return [encoder.get_input_embeddings().weight.shape[1] for _, encoder in pipeline.of(pipe).encoders]
