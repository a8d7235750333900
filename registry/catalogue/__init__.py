"""Search, labels, history and lineage of what the registry holds."""
