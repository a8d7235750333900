"""Whose word is where: each token its own delta, each concept its own part of the picture."""
