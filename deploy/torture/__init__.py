"""`headrace torture`: the real processes on a real broker, broken in every way we know, then healed and judged."""
