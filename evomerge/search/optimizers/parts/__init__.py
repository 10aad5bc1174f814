"""Parts that optimizers share: CMA-ES on mixed genes, variation, fronts, directions, screening."""
