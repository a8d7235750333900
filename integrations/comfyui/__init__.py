"""Concepts of the registry as nodes of ComfyUI; link this folder into ComfyUI/custom_nodes/conceptkit."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
