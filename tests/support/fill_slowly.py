"""Fills a store, one document at a time, and says so: fill_slowly.py FOLDER. For test_store.py, which kills it."""

from __future__ import annotations

import sys
import time

from test_constraint import TOKENIZER, TOKENS, a_batch
from tiny import tiny_model

from pact_plugin import PactConfig, PactConstraint


def batches(number: int = 40):
    return [a_batch(seed, rows=1, width=10 + seed % 3) for seed in range(number)]


def constraint(folder):
    model = tiny_model()
    config = PactConfig(safety_tokens=TOKENS, reference="stored", store=folder)
    return PactConstraint(model, TOKENIZER, config)


if __name__ == "__main__":
    built = constraint(sys.argv[1])

    def slowly(*_):
        print("pass", flush=True)
        time.sleep(0.05)

    built.model.register_forward_hook(slowly)
    built.fill(batches(), tokens_per_pass=1, progress=False)
    print("filled", flush=True)
