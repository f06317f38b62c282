"""Training: a process of its own from a patched base and shards to an adapter; and the merge."""
