"""Measuring: tasks, the plan of what is asked of a model, its runner, and what is read off the scores."""

VERSION = 5
"""raised when the same cell would give other figures; part of every cell's key and of the stage's.
5: suites ask short skills, needles are asked until it is decided, Chinese documents are asked in Chinese"""
