"""Match models' tokens by their text, so that models of different vocabularies can be merged."""
