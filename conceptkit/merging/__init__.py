"""What a merge is made of: the parts, what each brings, ways to join them, and what came of it."""
