"""Concepts that carry a reference photo, and how a UNet looks at it (ViCo, 2306.00971)."""
