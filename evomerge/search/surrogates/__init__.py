"""Surrogates: models of what was measured, that predict what was not."""
