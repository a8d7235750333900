"""Methods of learning, a file each."""
