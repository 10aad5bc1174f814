"""What leaves the project: checkpoints that others can load."""
