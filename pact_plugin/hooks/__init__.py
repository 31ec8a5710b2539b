"""The pluggy hooks through which adapters, models, judges and checks are found."""
