"""Exercises in training windows: facts planted in the user's own documents and asked for later."""

from yarn_ops.exercises.families import FAMILIES
from yarn_ops.exercises.windows import ExerciseSampler

VERSION = 3
"""raised whenever an equal seed draws other exercises: snapshots of another version are not used"""

__all__ = ["FAMILIES", "VERSION", "ExerciseSampler"]
