"""Several processes, one training step: who has what (`layout`, `arrange`), how they meet (`ranks`), what
becomes of them when one is lost (`peers`), attention over windows in parts (`ulysses`), a base in parts
(`sharding`).
"""
