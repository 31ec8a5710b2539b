"""What is left of a model's refusals after fine-tuning on data that others wrote: `python -m benchmarks field`."""
