"""Measuring: tasks, the plan of what is asked of a model, its runner, and what is read off the scores."""

VERSION = 4
"""raised when the same cell would give other figures; part of every cell's key and of the stage's.
4: a cell's key holds what the cell alone depends on; Student's quantiles are exact"""
