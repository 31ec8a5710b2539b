"""What torchrun starts on every rank, in the place of LLaMA-Factory's own launcher.

In a folder of its own: Python puts the script's folder first on the module search path.
"""

from pact_llamafactory.workflows import bring_in

if __name__ == "__main__":
    bring_in()
    from llamafactory.train.tuner import run_exp

    run_exp()
