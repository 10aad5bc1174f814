"""Model files: safetensors shards, names of tensors, conversion of other formats."""
