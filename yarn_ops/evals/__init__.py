"""Measuring: tasks, the plan of what is asked of a model, its runner, and what is read off the scores."""

VERSION = 6
"""raised when the same cell would give other figures; part of every cell's key and of the stage's.
6: long texts hold both forms of needle and of pair, growing context takes what perplexity has read"""
