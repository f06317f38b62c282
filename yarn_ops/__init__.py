"""yarn-ops: extend RoPE language models to long contexts, safely, measurably and on a schedule."""

__version__ = "0.1.0"
