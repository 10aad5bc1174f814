"""Search spaces: genes, and the recipes that genomes decode to."""
