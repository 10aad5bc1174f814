"""Permutation alignment of experts to their base (Git Re-Basin)."""
