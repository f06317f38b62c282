"""What helps a model that sees far and does not use it: the same questions, other ways to a long document.

Full attention, a rolling buffer with sinks, block selection, search, an agent loop, and the text cut to the
window: each behind the interface of `remedy`, side by side with what it costs.
"""
