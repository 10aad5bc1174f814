"""Proposing recipes: spaces (genes, decode) and optimizers (ask and tell)."""
