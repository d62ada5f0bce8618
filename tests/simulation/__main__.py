"""``python -m tests.simulation SEED``: run one seed again; ``FIRST LAST``: all from one to the other."""

from __future__ import annotations

import sys

from tests.simulation.campaign import Campaign, replay_command, run_seed


def main(arguments: list[str]) -> int:
    """Exit code 1 when a seed is wrong."""
    if len(arguments) == 1:
        run_seed(int(arguments[0]))
        print(f"seed {arguments[0]}: every invariant holds")
        return 0
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    first, last = int(arguments[0]), int(arguments[1])
    found = Campaign(first, last - first + 1).wait(lambda line: print(line, flush=True))
    for seed, said in found.failures[:20]:
        print(f"{said}\n    {replay_command(seed)}")
    print(found)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
