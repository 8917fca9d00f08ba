"""Evolution of a population: selection, mutation, lineage."""
