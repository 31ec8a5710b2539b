"""Safety tokens: what they are, their file, and how they are chosen."""
