"""Pictures for people: sheets, charts, text, PNG metadata."""
