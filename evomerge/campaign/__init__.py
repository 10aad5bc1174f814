"""The campaign: set-up, the loop, in-flight work, rungs, stages, initial points."""
