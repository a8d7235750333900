"""Text features: closed forms, statistics of captions, rows of a concept's words."""
