"""Load a model directory with plain transformers, nothing of ours, and score a long document."""

import inspect
import os
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
path = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
context_tokens = model.config.max_position_embeddings
ids = tokenizer(inspect.getsource(os), return_tensors="pt").input_ids[:, :context_tokens]
with torch.inference_mode():
    loss = model(input_ids=ids, labels=ids).loss.item()
rope = {key: value for key, value in model.config.rope_parameters.items() if key in ("rope_type", "factor")}
print(f"transformers {transformers.__version__}: {context_tokens} tokens, {rope}")
print(f"os.py, {ids.shape[1]} tokens of it, scored at {loss:.2f} nats a token")
