"""Exercises in training windows: facts planted in the user's own documents and asked for later."""

from yarn_ops.exercises.families import FAMILIES
from yarn_ops.exercises.windows import ExerciseSampler

__all__ = ["FAMILIES", "ExerciseSampler"]
