"""Seeing and using: what a model does with a long context, asked of any causal language model."""
