"""The version of the suite: part of every cell's protocol and of the stage's key."""

VERSION = 3
"""raised when the same cell would give other figures"""
