"""Recipe × sources → weights: in place on a resident model, or streamed to disk."""
