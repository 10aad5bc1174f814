"""Read model files: safetensors shards, canonical names, weights saved in other pieces."""
