"""Texts that people type: the same letters are the same text, however a keyboard or a disk composes them."""

import unicodedata


def composed(text: str) -> str:
    """The text with every accent on its letter (Unicode's NFC): macOS and some keyboards write them apart."""
    return unicodedata.normalize("NFC", text)
