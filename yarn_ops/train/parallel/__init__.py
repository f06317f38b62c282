"""Several processes that train one model: how they share a step (`layout`), collectives (`ranks`), heartbeats
(`peers`), sharded layers (`sharding`), sharded parameters that learn (`parameter_shards`). Attention over a
window in parts is `train.ulysses`.
"""
