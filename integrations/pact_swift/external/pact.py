"""A file for `--external_plugins`: PACT with its default settings."""

import pact_swift

pact_swift.register()
