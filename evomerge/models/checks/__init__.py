"""Checks of models before a campaign begins."""
