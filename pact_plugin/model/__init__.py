"""A causal language model taken apart: its head, its wrappers, its ranks."""
