"""The pluggy hooks through which adapters, token sources and references are found."""
