"""Models in the forms that engines read: a config.json of their own, a GGUF file, a base with its adapter."""
