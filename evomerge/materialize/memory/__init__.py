"""Candidates in a worker's memory: the resident model, its layers, and the GPU's memory plan."""
