"""Measuring: one file a task family (perplexity, recall), the stage that runs them, the gate, the report."""
