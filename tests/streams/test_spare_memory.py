"""Memory freed after a flood goes back to the system, and nothing is done where nothing has grown."""

from __future__ import annotations

import subprocess
import sys

from streams.spare_memory import LOOK_S, LOOKS_MAX, SpareMemory

MIB = 1 << 20
FLOOD = """
import os, sys, time
from pathlib import Path
from streams import spare_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

if sys.argv[1] == "given-back":
    spare_memory.give_back_from_now_on()
before = resident_mib()
flood = [bytes(2_000) for _ in range(50_000)]
survivor = bytes(2_000)  # above all of it, as some result of a flood always is
grown = resident_mib() - before
del flood
until = time.monotonic() + 20
while resident_mib() - before > grown / 4 and time.monotonic() < until and sys.argv[1] == "given-back":
    time.sleep(0.1)
print(grown, resident_mib() - before, len(survivor))
"""


def _flood(how: str) -> tuple[float, float]:
    """MiB by which a process has grown in a flood, and after it."""
    said = subprocess.run([sys.executable, "-c", FLOOD, how], capture_output=True, text=True, check=True, timeout=60)
    grown, kept, _ = map(float, said.stdout.split())
    return grown, kept


def test_what_a_flood_left_is_given_back_though_something_above_it_lives() -> None:
    grown, kept = _flood("given-back")
    assert grown > 80
    assert kept < 20


def test_otherwise_it_stays_for_ever() -> None:
    grown, kept = _flood("kept")
    assert kept > 0.8 * grown


def test_nothing_is_done_while_nothing_has_grown_since_it_was_last_given_back() -> None:
    resident, trims = [200 * MIB], []

    def trim() -> None:
        trims.append(resident[0])
        resident[0] = 200 * MIB

    memory = SpareMemory(lambda: resident[0], trim, lambda: 0.0)
    memory.look()
    assert len(trims) == 1, "the first look finds what the start left"
    for mib in (200, 205, 209, 195):
        resident[0] = mib * MIB
        memory.look()
    assert len(trims) == 1
    resident[0] = 211 * MIB
    memory.look()
    assert trims[1:] == [211 * MIB]


def test_a_flood_that_lasts_keeps_what_it_freed_until_it_rests_or_has_lasted_long() -> None:
    used, trims = [0.0], []
    memory = SpareMemory(lambda: 200 * MIB + len(trims), lambda: trims.append(used[0]), lambda: used[0])
    for _ in range(3):
        used[0] += 0.9 * LOOK_S
        memory.look()
    assert not trims
    memory.look()
    assert len(trims) == 1, "at rest"
    growing = [200 * MIB]
    memory = SpareMemory(lambda: growing[0], lambda: trims.append(used[0]), lambda: used[0])
    trims.clear()
    for _ in range(2 * LOOKS_MAX + 2):
        used[0] += 0.9 * LOOK_S
        growing[0] += 80 * MIB
        memory.look()
    assert len(trims) == 2, "never at rest"
