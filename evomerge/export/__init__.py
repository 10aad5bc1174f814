"""What leaves the project: checkpoints with their cards, mergekit's files, the hub."""
