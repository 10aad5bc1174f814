"""Tasks: lm-eval's and own metrics, and the items that they are made of."""
