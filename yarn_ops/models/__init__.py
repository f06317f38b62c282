"""Model directories: read and checked (files, checkpoints), patched, loaded whole or in parts, and run."""
