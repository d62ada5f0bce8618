"""Kafka's Java starts from a cache of what it loaded and linked last time: half the CPU, 2.5 s and not 5.

Owns where the cache of this Java, these jars and these flags lies and the flags that use it. Java itself makes sure
that a cache fits, and starts without one that does not. Made by `deploy.broker_training`. Source: JEP 483, 514, 515.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

JAVA_MIN = 25
"""First Java that makes such a cache in one step (JEP 514)."""


def path(command: Sequence[str]) -> Path:
    """Where the cache of a command (`broker_java.command`) lies or would lie, in the user's cache folder."""
    java = Path(command[0])
    found = java.stat()
    key = "\0".join([*command, str(found.st_mtime_ns), str(found.st_size)])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "headrace" / f"kafka-{hashlib.sha256(key.encode()).hexdigest()[:16]}.aot"


def flags(command: Sequence[str]) -> list[str]:
    """What to add to the command of a node; nothing as long as there is no cache."""
    cache = path(command)
    return [f"-XX:AOTCache={cache}"] if cache.exists() else []


def training_flags(cache: Path) -> list[str]:
    """What makes Java write the cache when it ends in order."""
    return [f"-XX:AOTCacheOutput={cache}"]
