"""Concepts in fewer bytes: what their numbers do to pictures, and how coarsely each may be rounded."""
