"""What a process of ours says on its metrics port."""

from __future__ import annotations

import urllib.error
import urllib.request


def is_ready(port: int) -> bool:
    """Whether the process is ready to be sent something."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def metric(port: int, name: str) -> float:
    """Sum of one metric over its labels, 0 when it is not there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            lines = answer.read().decode().splitlines()
    except (urllib.error.URLError, OSError):
        return 0.0
    samples = [line for line in lines if line.startswith((f"{name}{{", f"{name} ", f"{name}_total"))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in samples)
