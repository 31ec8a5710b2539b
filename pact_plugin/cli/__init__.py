"""The command line, `pact-plugin`."""
