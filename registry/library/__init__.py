"""Files of other programs that lie on this machine: found, known again, listed; none of them is copied."""
