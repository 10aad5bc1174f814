"""Shared mathematics of merge methods, and the registry that finds them."""
