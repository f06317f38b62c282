"""Remedies: other ways than full attention to answer from a document longer than a model uses.

Full attention, a rolling buffer with sinks, block selection, search, an agent loop, and the text cut to the
window: each behind the interface of `remedy`, side by side with what it costs.
"""
