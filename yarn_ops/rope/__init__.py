"""RoPE for longer contexts: the reference (methods), the config (config), the patch and its proof."""
