"""From a configuration to a run: model, data, environment, agents, and a directory for what comes of it."""
