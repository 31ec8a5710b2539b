"""PACT for ms-swift: `swift sft --external_plugins "$(python -m pact_swift)" ...`.

With settings, the plugin is a file of your own, `--external_plugins pact.py`:

    import pact_swift

    pact_swift.register({"weight": 3})
"""

from pact_swift.registration import register

__all__ = ["register"]
