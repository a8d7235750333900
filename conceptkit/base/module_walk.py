"""The modules of a model with their paths, as `nn.Module.named_modules` gives them, several times as fast.

PyTorch hands each module up through a generator for every level above it. Exchanging concepts between
drawings looks through whole models, where this is most of the time.
"""

from __future__ import annotations

from torch import nn


def named_modules(
    model: nn.Module, *, leaves: type[nn.Module] = nn.Module, repeated: bool = False
) -> list[tuple[str, nn.Module]]:
    """(path, module) of a model and all below it, each module once, in PyTorch's order.

    leaves: of modules with none below them, only those of this kind. repeated: a module at every path it has.
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen and not repeated:
            continue
        seen.add(id(module))
        found.append((path, module))
        start = f"{path}." if path else ""
        waiting += [
            (start + name, child)
            for name, child in reversed(module._modules.items())
            if child is not None and (child._modules or isinstance(child, leaves))
        ]
    return found


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, None where there is none."""
    found: nn.Module | None = model
    for name in path.split(".") if path else ():
        if found is None:
            return None
        found = found._modules.get(name)
    return found
