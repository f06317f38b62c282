"""The sizes of a model, and the memory that its weights, gradients and optimizer take on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from yarn_ops.train.parallel.layout import Layout

TRAINED_BYTES = 4 + 4 + 8
"""of a parameter that learns, in float32: itself, its gradient, AdamW's two moments"""
FLOAT32_BYTES = 4
TILE_ROWS = 1 << 15
"""positions of the MLP at a time, where its products are not kept"""
NF4_TILE_ROWS = 1 << 13
"""the same where weights are held in 4 bits, for want of memory"""
NF4_BLOCK = 64
"""weights of one scale"""
NF4_BYTES = (4 + 32 / NF4_BLOCK) / 8
"""of a weight in 4 bits, with its share of a float32 scale"""
STREAM_SLOTS = 2
"""layers whose streamed weights the device holds at a time"""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that the cost of its step depends on."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    parameters: int
    trained: int
    element_bytes: int = 2
    """of activations"""
    weight_bytes: int = 2
    """of a frozen parameter"""
    full: bool = False
    """method full: all parameters learn"""
    context: int = 1
    """processes that share a window, each with its part of the positions"""
    shards: int = 1
    """processes that shard the frozen layers"""
    optimizer_shards: int = 1
    """processes that each keep and update a part of what learns"""
    streamed: int = 0
    """layers whose frozen weights are copied from host memory a layer ahead"""
    mapped: bool = False
    """streamed weights stay in their files and are read each time they are copied"""
    nf4: bool = False
    """the layers' frozen matrices are held in 4 bits, and a layer's dequantised before it computes"""

    @classmethod
    def of(cls, model: Any, *, element_bytes: int, weight_bytes: int) -> ModelShape:
        """Of a transformers model with its adapters; its parameters need no data (meta device)."""
        config = model.config
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        parameters = sum(value.numel() for value in model.parameters())
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            mlp=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocabulary=config.vocab_size,
            parameters=parameters,
            trained=trained,
            element_bytes=element_bytes,
            weight_bytes=weight_bytes,
            full=trained == parameters,
        )

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices."""
        return self.hidden * (2 * self.attention_width + 2 * self.kv_width + 3 * self.mlp)

    @property
    def layer_bytes(self) -> int:
        """Bytes of all layers' frozen matrices, as they are computed with."""
        return self.layers * self.layer_parameters * self.weight_bytes

    @property
    def nf4_bytes(self) -> int:
        """Bytes of all layers' frozen matrices in 4 bits."""
        return round(self.layers * self.layer_parameters * NF4_BYTES)

    @property
    def tile_rows(self) -> int:
        """Positions of the MLP at a time, where its products are not kept."""
        return NF4_TILE_ROWS if self.nf4 else TILE_ROWS

    @property
    def fixed_bytes(self) -> int:
        """Bytes of weights, gradients and optimizer on the device. Of sharded layers: this process's shards,
        and gathered copies of the layer in use and the next; of streamed layers these two alone; of layers in
        4 bits, these and one dequantised."""
        whole = (self.parameters - self.trained) * self.weight_bytes
        whole += self.trained * TRAINED_BYTES // self.optimizer_shards + self.copied_bytes
        layer_bytes = self.layer_bytes // self.layers
        if self.shards > 1:  # what arrives is copied to its places
            return whole - self.layer_bytes + self.layer_bytes // self.shards + 3 * layer_bytes
        if self.nf4:
            return whole - self.layer_bytes + self.nf4_bytes + layer_bytes
        return whole - max(0, self.streamed - STREAM_SLOTS) * layer_bytes

    @property
    def copied_bytes(self) -> int:
        """Bytes of the weights that a step computes with, where all learn: copies beside those in float32."""
        if self.optimizer_shards > 1:  # the embedding in float32
            embedding = self.vocabulary * self.hidden
            return self.trained * self.element_bytes + embedding * (FLOAT32_BYTES - self.element_bytes)
        return self.trained * self.element_bytes if self.full and self.element_bytes < FLOAT32_BYTES else 0

    @property
    def update_bytes(self) -> int:
        """As `fixed_bytes`, and what AdamW's step holds beside them. Layers then keep nothing, and a process
        that does not shard has no copies."""
        copied = self.copied_bytes if self.optimizer_shards == 1 else 0
        return self.fixed_bytes - copied + self.trained * FLOAT32_BYTES // self.optimizer_shards

    @property
    def pinned_bytes(self) -> int:
        """Bytes of host memory that streamed layers take: their weights; where these stay in their files, the
        two copies on their way."""
        return min(self.streamed, STREAM_SLOTS if self.mapped else self.layers) * (
            self.layer_bytes // self.layers
        )

    def laid_out(self, layout: Layout) -> ModelShape:
        """The shape for one process of this layout."""
        return replace(
            self,
            context=layout.context,
            shards=layout.processes if layout.sharded else 1,
            optimizer_shards=layout.processes if layout.optimizer_sharded else 1,
            streamed=layout.streamed,
            mapped=layout.mapped,
        )
