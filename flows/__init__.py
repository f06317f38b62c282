"""Prefect flows: everything around a stage. The only package that imports Prefect."""
