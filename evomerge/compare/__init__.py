"""`evomerge compare`: several optimizers on one campaign, at equal budgets and over seeds."""
