"""PACT for Axolotl: `plugins: [pact_axolotl.PactPlugin]` and `pact: true` in a configuration.

Axolotl trains on, without a plugin, when that cannot be imported: 0.19 and 0.20 after an `ImportError`, 0.21 after any
error of a plugin that `plugins:` does not list. So importing this package needs nothing but the standard library.
Everything else is imported in the hooks, whose errors stop Axolotl.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PactPlugin"]


class PactPlugin:
    """Constrains Axolotl's supervised fine-tuning, and its preference training by DPO.

    An error of any of these hooks stops `axolotl train` with exit status 1.
    """

    def register(self, cfg: dict[str, Any]) -> None:
        """Refuse what cannot be constrained, before anything is loaded.

        Args:
            cfg: The configuration as read from its file.

        Raises:
            PactError: Names the key to change.
        """
        from pact_axolotl.hooks import register

        register(cfg)

    def get_input_args(self) -> str:
        """Where the key `pact` is declared."""
        return "pact_axolotl.args.PactArgs"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Compare the tokens with the tokenizer before the data is prepared; no data is loaded here.

        Args:
            cfg: The configuration as Axolotl has validated it.
            preprocess: Whether the data is only prepared; makes no difference here.

        Raises:
            PactError: They do not fit.
        """
        from pact_axolotl.hooks import before_the_data

        before_the_data(cfg)

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Constrain the trainer, whichever class it has.

        Raises:
            PactError: The trainer, the model, the safety tokens and the reference do not fit.
        """
        from pact_axolotl.hooks import constrain

        constrain(cfg, trainer)

    def __getattr__(self, name: str) -> Any:
        """The hooks that are left as they are: from the base class, which cannot be a base before it is imported."""
        if name.startswith("__"):
            raise AttributeError(name)
        from axolotl.integrations.base import BasePlugin

        return getattr(BasePlugin(), name)
