"""Parts that optimizers share: CMA-ES on mixed genes, variation, fronts, reference points."""
