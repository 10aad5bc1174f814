"""Surrogate models of the fitness, and screening of proposals by them."""
