"""A recipe that runs whole in seconds, for whoever runs one."""

SMALL = """\
[base]
model = "shipped:base512"
[rope]
factor = 2
[data]
sources = ["stdlib:json/*.py", "stdlib:email/*.py", "stdlib:asyncio/*.py"]
[train]
steps = 4
checkpoint_every = 2
context_tokens = 256
[evaluate]
lengths = [1, 2]
windows = 2
recall_windows = 2
templates = ["code"]
[gate]
min_recall_kept = 0
min_uses_share = 0
max_short_growth = 2
max_long_growth = 3
max_short_recall_loss = 1
[publish]
name = "small"
"""
"""A whole extension in seconds: base512 ×2, four steps on a few modules, two windows a cell."""
