"""``make bench``: every benchmark in turn, each in a process of its own; results in benchmarks/results."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("join_throughput", "decision_latency", "learn_throughput", "checkpoint_stall", "banking77_offline", "worlds")


def main() -> int:
    """Run all; the first exit code that is not 0."""
    for name in NAMES:
        print(f"== {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
