"""What Axolotl calls. Only `axolotl` is imported outside of the hooks (see the package's docstring)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axolotl.integrations.base import BasePlugin
from axolotl.utils.logging import get_logger

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault

LOG = get_logger("axolotl.pact")


class PactPlugin(BasePlugin):
    """Constrains Axolotl's supervised fine-tuning.

    An error of any of these hooks stops `axolotl train` with exit status 1.
    """

    def register(self, cfg: dict[str, Any]) -> None:
        """Refuse what cannot be constrained, before anything is loaded.

        Args:
            cfg: The configuration as read from its file.

        Raises:
            PactError: Names the key to change.
        """
        from pact_axolotl.check.problems import require_constrainable
        from pact_axolotl.settings import PLUGIN, settings

        require_constrainable(cfg)
        if settings(cfg) is None and PLUGIN in (cfg.get("plugins") or []):
            LOG.warning("PACT: `pact` is off, so this run is NOT constrained.")

    def get_input_args(self) -> str:
        """Where the key `pact` is declared."""
        return "pact_axolotl.args.PactArgs"

    def load_datasets(self, cfg: DictDefault, preprocess: bool = False) -> None:
        """Compare a token file with the tokenizer before the data is prepared; no data is loaded here.

        Raises:
            PactError: They do not fit.
        """
        from pact_axolotl.check.problems import configured_tokens
        from pact_axolotl.settings import settings

        config = settings(cfg)
        tokens = None if config is None else configured_tokens(config)
        if tokens is not None:
            from axolotl.loaders import load_tokenizer

            tokens.check(load_tokenizer(cfg))

    def post_trainer_create(self, cfg: DictDefault, trainer: Any) -> None:
        """Constrain the trainer, whichever class it has.

        Raises:
            PactError: The trainer, the model, the safety tokens and the reference do not fit.
        """
        from pact_axolotl.settings import settings

        config = settings(cfg)
        if config is None:
            return
        from axolotl.utils.train import determine_last_checkpoint

        from pact_axolotl.settings import resumed
        from pact_plugin.assemble import attach

        config = resumed(config, determine_last_checkpoint(cfg))
        if config.safety_tokens is None:
            LOG.info(
                "PACT: choosing the safety tokens from the model's own answers, once; this can take minutes."
            )
        attach(trainer, config)
        begins = "constrained" if config.weight else "measured with weight 0, NOT constrained"
        LOG.info("PACT: %s; %s", begins, trainer.pact.record.receipt)
