"""What the constraint costs: `python -m benchmarks --help`."""
