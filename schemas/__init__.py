"""The contract: records, blocks, topics, tasks, keys, and how they become bytes."""
