"""Read model files: safetensors shards, pages given back, weights saved in other pieces."""
