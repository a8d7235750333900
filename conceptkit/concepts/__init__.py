"""A concept as a value: its delta, its tokens, its bytes."""
