"""The stages of an extension: which plain function does the work of each, and what it is given.

What needs torch is imported by the stages that compute with it: a run that only reuses starts without.
"""
