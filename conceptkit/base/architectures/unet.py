"""UNets with cross-attention: Stable Diffusion 1 and 2, SDXL."""

from conceptkit.base.architectures.architecture import Architecture

ARCHITECTURE = Architecture()
