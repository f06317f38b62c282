"""The data path: sources → corpus → token shards → windows."""
