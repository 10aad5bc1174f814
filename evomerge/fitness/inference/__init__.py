"""A causal language model's answers: packed log-likelihoods and greedy generation."""
