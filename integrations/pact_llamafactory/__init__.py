"""PACT for LLaMA-Factory: `pact: true` in a configuration, and `pact-plugin train config.yaml`."""
