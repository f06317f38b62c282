"""Measuring: tasks, the plan of what is asked of a model, its runner, and what is read off the scores."""

VERSION = 7
"""raised when the same cell would give other figures; part of every cell's key and of the stage's.
7: no blank before what goes on within a text, where a tokenizer puts one before all that it encodes"""
