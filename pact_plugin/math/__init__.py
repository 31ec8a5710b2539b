"""The mathematics of spec/PACT.md over the Python array API; imports no framework."""
