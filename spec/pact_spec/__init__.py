"""PACT's reference implementation and conformance vectors; `spec/PACT.md` is the text they belong to.

`python -m pact_spec path.to.module` checks an implementation. Independent of pact_plugin.
"""
