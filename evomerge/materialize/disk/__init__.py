"""Checkpoints on disk: streamed weights, and the record of how they were made."""
