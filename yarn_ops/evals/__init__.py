"""Measuring: tasks, the plan of what is asked of a model, its runner, and what is read off the scores."""

VERSION = 8
"""raised when the same cell would give other figures; part of every cell's key and of the stage's.
8: a perplexity that has exploded is asked no further; foreign text is read behind what perplexity has read"""
