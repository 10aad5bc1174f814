"""Results: the meaning of a study's records."""
