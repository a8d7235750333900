"""Where concepts are kept: an index in SQLite over blobs named by their hash. Knows nothing of torch."""
