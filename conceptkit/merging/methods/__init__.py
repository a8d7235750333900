"""Merge methods, a file each."""
