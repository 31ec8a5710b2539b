"""A small, complete experiment: fine-tune an aligned chat model twice, plainly and with PACT, and compare."""
