"""One worker per system. Each runs in its own process and environment and imports only its own system."""
