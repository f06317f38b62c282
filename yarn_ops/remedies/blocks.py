"""Block attention: the first block, the last ones, and those between that suit the query best.

The keys of a text are cut into blocks, and each block is summed up by the least and the largest value that
its keys have in every dimension. The product of a query with the better of the two, added up over the
dimensions, bounds its product with any key of the block from above (Tang et al. 2024, "Quest: Query-Aware
Sparsity for Efficient Long-Context LLM Inference"). That is loose for blocks of many keys, so it only makes
the shortlist; the keys of the shortlist are read, and the blocks with the best of them are attended to.
All of this is done with unturned keys, and what is chosen is laid out side by side, in the order of the
text, as if it were the whole of it (Xiao et al. 2024, "InfLLM", put far blocks at one near position to the
same end): no query meets a distance longer than what it sees, so a model finds what its positions would
not reach.

Choosing is done anew in every layer and key head: for every token of a question; while a document is read
for every block of queries, by its first. No query is chosen for by a later one.

With at least as many blocks chosen as there are, this is full attention, exactly.

Axes: H query heads, G key heads, R = H/G, Q queries, T groups of P queries that see the same blocks,
M blocks of a text, S chosen ones, C keys of a block, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from yarn_ops.models.pre_rope import Rotation, run

CHUNK_TOKENS = 2048
SHORTLIST = 8
"""blocks whose keys are read for one chosen: base512 ×4 recalls .84 of 64 pairs with 4, .94 with 8, .98 with
all; mean and spread for a summary, or bounds of quarters of a block, do no better"""
GATHERED_ELEMENTS = 1 << 24
"""keys copied at a time: 64 MiB in float32"""


class BlockMemory:
    """Keeps all keys and values; a query attends to at most `chosen` + `near` + 2 blocks of them."""

    def __init__(self, model: PreTrainedModel, *, block_tokens: int, chosen: int, near: int) -> None:
        """A query sees the first block, its own, the `near` ones before it and `chosen` others."""
        self._model, self._rotation = model, Rotation(model)
        self._block, self._chosen, self._near = block_tokens, chosen, near
        self._layers: dict[int, _Layer] = {}
        self._read = 0
        self._capacity = 0
        self._reading = False

    def read(self, ids: Tensor) -> None:
        self._reading = True
        self._capacity = len(ids)
        for chunk in ids.split(max(1, CHUNK_TOKENS // self._block) * self._block):
            run(self._model, self, chunk, 1)
            self._read += len(chunk)
        self._reading = False

    def ask(self, ids: Tensor, last: int) -> Tensor:
        logits = run(self._model, self, ids, last)
        at = self._read + len(ids) - 1
        blocks = min(at // self._block, self._chosen + self._near + 1)
        self.seen = blocks * self._block + at % self._block + 1
        return logits

    seen = 0

    @property
    def held_bytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers.values())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if layer not in self._layers:
            self._layers[layer] = _Layer(key, self._block, max(self._capacity, key.shape[1]))
        store = self._layers[layer]
        store.write(self._read, key, value)

        queries, width = query.shape[1], self._block if self._reading else 1
        short = -queries % width
        query = torch.nn.functional.pad(query, (0, 0, 0, short)).unflatten(0, (key.shape[0], -1))
        query_GRTPD = query.unflatten(2, (-1, width))
        at_T = torch.arange(self._read, self._read + queries + short, width, device=query.device)
        keys_a_group = (max(self._chosen + self._near + 2, SHORTLIST * self._chosen)) * self._block
        step = max(1, GATHERED_ELEMENTS // (key.shape[0] * keys_a_group * key.shape[2]))
        output = torch.cat(
            [
                self._attend_groups(store, some, at, scaling)
                for some, at in zip(query_GRTPD.split(step, dim=2), at_T.split(step), strict=True)
            ],
            dim=2,
        )
        return output.flatten(2, 3)[:, :, :queries].flatten(0, 1)

    def _attend_groups(self, store: _Layer, query_GRTPD: Tensor, at_T: Tensor, scaling: float) -> Tensor:
        groups, width = query_GRTPD.shape[2:4]
        slots_GTS = self._slots(store, query_GRTPD[:, :, :, 0], at_T // self._block)
        key_GTSCD, value_GTSCD = store.take(slots_GTS)
        # Slots that hold nothing come first: positions are counted over them, since only differences matter.
        slots = slots_GTS.shape[2]
        places_K = torch.arange(slots * self._block, device=at_T.device)
        key_GTKD = self._rotation.turn(key_GTSCD.flatten(2, 3), places_K)
        own_TP = at_T[:, None] % self._block + torch.arange(width, device=at_T.device)
        places_TP = (slots - 1) * self._block + own_TP
        turned = self._rotation.turn(query_GRTPD.flatten(2, 3), places_TP.flatten()).unflatten(
            2, (groups, width)
        )
        logits = turned.transpose(1, 2).flatten(2, 3) @ key_GTKD.transpose(2, 3)  # [G, T, RP, K]
        logits = logits.float().mul_(scaling).unflatten(2, (-1, width))
        empty_GTK = (slots_GTS < 0).repeat_interleave(self._block, dim=2)
        later_TPK = places_K > places_TP[..., None]
        logits.masked_fill_(empty_GTK[:, :, None, None] | later_TPK[:, None], -torch.inf)
        weights = logits.softmax(-1).to(value_GTSCD.dtype).flatten(2, 3)
        output = weights @ value_GTSCD.flatten(2, 3)
        return output.unflatten(2, (-1, width)).transpose(1, 2)

    def _slots(self, store: _Layer, query_GRTD: Tensor, own_T: Tensor) -> Tensor:
        """Blocks that each group sees, int64 [G, T, S], ascending, its own last; before them -1 for none."""
        first_near_T = (own_T - self._near).clamp(min=0)
        near_TS = own_T[:, None] - torch.arange(self._near + 1, device=own_T.device)
        always_TS = torch.cat((torch.where(first_near_T > 0, 0, -1)[:, None], near_TS.clamp(min=-1)), dim=1)
        slots = [always_TS.expand(len(query_GRTD), -1, -1)]
        between = int(first_near_T[-1]) - 1  # candidates are blocks 1 .. first_near - 1
        if self._chosen and between > 0:
            bounds_GTM = store.bounds(query_GRTD, 1, between + 1)
            blocks_M = torch.arange(1, between + 1, device=own_T.device)
            bounds_GTM = bounds_GTM.masked_fill(blocks_M >= first_near_T[:, None], -torch.inf)
            listed = bounds_GTM.topk(min(SHORTLIST * self._chosen, between), dim=2)
            listed_GTS = torch.where(listed.values > -torch.inf, listed.indices + 1, -1)
            best = store.best_products(query_GRTD, listed_GTS).topk(min(self._chosen, between), dim=2)
            slots.append(listed_GTS.gather(2, best.indices))
        return torch.cat(slots, dim=2).sort(dim=2).values


class _Layer:
    """Unturned keys and values of a layer in whole blocks [G, M, C, D], and the summaries of the blocks."""

    def __init__(self, like: Tensor, block: int, tokens: int) -> None:
        self._block = block
        heads, _, width = like.shape
        blocks = -(-tokens // block)
        self._keys = like.new_zeros(heads, blocks, block, width)
        self._values = torch.zeros_like(self._keys)
        self._least = like.new_zeros(heads, blocks, width)
        self._most = torch.zeros_like(self._least)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes + self._least.nbytes + self._most.nbytes

    def write(self, start: int, key: Tensor, value: Tensor) -> None:
        """Put keys [G, Q, D] at `start`; what was there, and all after it, is forgotten."""
        end = start + key.shape[1]
        missing = -(-end // self._block) - self._keys.shape[1]
        if missing > 0:
            for name in ("_keys", "_values", "_least", "_most"):
                old: Tensor = getattr(self, name)
                more = old.new_zeros(old.shape[0], missing, *old.shape[2:])
                setattr(self, name, torch.cat((old, more), dim=1))
        self._keys.flatten(1, 2)[:, start:end] = key
        self._values.flatten(1, 2)[:, start:end] = value
        some = slice(start // self._block, end // self._block)  # only whole blocks are ever chosen
        self._least[:, some] = self._keys[:, some].amin(2)
        self._most[:, some] = self._keys[:, some].amax(2)

    def take(self, slots_GTS: Tensor) -> tuple[Tensor, Tensor]:
        heads = torch.arange(len(slots_GTS), device=slots_GTS.device)[:, None, None]
        wanted = slots_GTS.clamp(min=0)
        return self._keys[heads, wanted], self._values[heads, wanted]

    def best_products(self, query_GRTD: Tensor, slots_GTS: Tensor) -> Tensor:
        """Largest product of a query of the group with a key of the block [G, T, S]; -inf for slot -1."""
        heads = torch.arange(len(slots_GTS), device=slots_GTS.device)[:, None, None]
        key_GTKD = self._keys[heads, slots_GTS.clamp(min=0)].flatten(2, 3)
        products = query_GRTD.transpose(1, 2) @ key_GTKD.transpose(2, 3)  # [G, T, R, K]
        return products.amax(2).unflatten(2, (-1, self._block)).amax(3).masked_fill(slots_GTS < 0, -torch.inf)

    def bounds(self, query_GRTD: Tensor, first: int, end: int) -> Tensor:
        """Largest bound among the query heads of the group [G, T, M]."""
        least, most = (x[:, None, first:end].transpose(2, 3) for x in (self._least, self._most))
        return (query_GRTD.clamp(min=0) @ most + query_GRTD.clamp(max=0) @ least).amax(1)
