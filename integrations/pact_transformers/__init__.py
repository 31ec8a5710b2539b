"""PACT for Hugging Face transformers."""
