"""The walk of one batch through the code: `python tools/walk.py` trains a tiny model with TRL and prints each function.

Needs the test extra. What is printed is the second step of a run with the default settings, its table filled and its
anchors read: each function of ours, in the order in which it is first entered.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OURS = ("pact_plugin", "pact_transformers", "pact_trl")
sys.path.insert(0, str(ROOT / "tests" / "support"))


def module_of(frame: Any) -> str | None:
    """The dotted name of a frame's module, if it is one of ours; not of generated methods and comprehensions."""
    name, code = frame.f_globals.get("__name__", ""), frame.f_code
    written = code.co_name == "__call__" or not code.co_name.startswith(("<", "__"))
    return name if written and name.split(".")[0] in OURS else None


class Walk:
    """Notes the functions that a call passes through, each once, in the order in which they are first entered."""

    def __init__(self) -> None:
        self.functions: dict[tuple[str, str], None] = {}

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and (module := module_of(frame)) is not None:
            self.functions[module, frame.f_code.co_name] = None

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, and note its walk."""
        sys.setprofile(self._profile)
        try:
            return function(*args, **kwargs)
        finally:
            sys.setprofile(None)

    @property
    def modules(self) -> list[str]:
        """Each module once, in order of the first entry."""
        return list(dict.fromkeys(module for module, _ in self.functions))

    @property
    def returns(self) -> int:
        """How often the list of functions goes back to a module that it has left."""
        stays = [module for module, _ in groupby(module for module, _ in self.functions)]
        return len(stays) - len(self.modules)


def walk_of_a_step(folder: str) -> Walk:
    """The second step of a run with the default settings."""
    from sft import TOKENS, lora, sft_trainer  # type: ignore[import-not-found]

    import pact_plugin as pact

    trainer = pact.attach(sft_trainer(folder, peft=lora(), max_steps=2), {"safety_tokens": TOKENS})
    walk, plain = Walk(), trainer.compute_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        return walk.call(plain, *args, **kwargs) if trainer.state.global_step == 1 else plain(*args, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    return walk


def main() -> None:
    """Print the walk."""
    with tempfile.TemporaryDirectory() as folder:
        walk = walk_of_a_step(folder)
    for module, function in walk.functions:
        print(f"{module:40} {function}")
    print(f"{len(walk.modules)} modules, {walk.returns} returns to a module already left")


if __name__ == "__main__":
    main()
