"""Candidates in a worker's memory: the resident model and where its weights lie."""
