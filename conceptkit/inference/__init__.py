"""Concepts on a pipeline: attach and detach them, draw with them."""
