"""Bundles, signatures and remotes."""
