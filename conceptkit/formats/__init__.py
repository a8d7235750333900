"""File formats of other programs, one file per dialect."""
