"""A base: a diffusers pipeline as the rest of conceptkit sees it."""
