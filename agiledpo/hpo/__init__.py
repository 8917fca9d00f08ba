"""How a population evolves, and the record of it."""
