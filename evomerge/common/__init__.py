"""Helpers that every room may use: errors, plug-in discovery, digests, reading files, signals."""
