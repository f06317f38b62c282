"""Training: a process of its own that turns a patched base and token shards into an adapter, and the merge."""
