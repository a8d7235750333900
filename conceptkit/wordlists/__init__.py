"""Captions and words for bases that have none of their own."""
