"""Fits the weights of pact-plugin's judge on labelled answers, and measures it on models that it has not seen."""
