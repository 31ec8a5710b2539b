"""Batches and prompts: response positions, documents, bundled prompts, generation."""
