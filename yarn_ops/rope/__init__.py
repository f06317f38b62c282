"""RoPE for longer contexts: the reference (methods), configs (config), the proof of a model (proof)."""
