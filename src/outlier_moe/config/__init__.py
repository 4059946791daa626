"""What is configured: YAML and its schemas, the registry of models, the tiers of nodes."""
