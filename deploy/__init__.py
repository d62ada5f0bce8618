"""Everything around the running system: the `headrace` command, broker, topics, audit, demo, images."""
