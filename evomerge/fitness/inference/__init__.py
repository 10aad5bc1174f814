"""A causal language model answers requests: packed log-likelihoods, greedy generation.

Read `prefix_packing` first, then `batch`, `forward`, `loglikelihood`, `kv_cache`, `generation`;
`local_model` chooses among the last two and lm-eval.
"""
