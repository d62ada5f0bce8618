"""Environment: everything outside the log that the bits of a snapshot depend on, pinned and written down.

learning.md rule 22. Three steps, in order: `pin` before any numeric library is loaded (BLAS reads its kernel choice
from the environment once, at load), `configure` before the first arithmetic, `describe` for manifest and checkpoint.
Two processes whose descriptions are equal compute the same bits from the same log; nothing is claimed across others.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from schemas.errors import UserError

MARK = "HEADRACE_PINNED"
"""Set in a process whose numeric libraries were loaded under the pins."""
ANCHOR = "anchor"
"""Key under which a manifest names the newest daily checkpoint; no bits depend on it."""
GENESIS = "genesis"
"""Key under which a manifest names its history."""
LINEAGE_BREAK = "lineage_break"
"""Key under which a manifest says that its history went on in another environment, and from where."""
CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl", "asimd", "sve")
"""Those that numeric kernels are chosen by."""
_HELD = (signal.SIGTERM, signal.SIGINT)


def pins(threads: int, flags: frozenset[str]) -> dict[str, str]:
    """Environment variables for `threads` on a processor with `flags`.

    With AVX2, one kernel family for every such processor, so that a fleet of mixed machines agrees: MKL's code path
    and OpenBLAS's core type would otherwise follow the machine.
    """
    count = str(threads)
    variables = {
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "NUMEXPR_NUM_THREADS": count,
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        MARK: count,
    }
    if {"avx2", "fma"} <= flags:
        variables |= {"MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx2"}
    return variables


def pin(threads: int) -> None:
    """Start this very program again under `pins` unless it already runs under them. Returns only in the latter case.

    A signal that comes in between waits for the second start to call this: an exec puts the default of each signal
    back, and the program's handlers would not hear it.
    """
    if os.environ.get(MARK) == str(threads):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **pins(threads, cpu_flags())})


def cpu_flags() -> frozenset[str]:
    """Those of `CPU_FLAGS` that this processor has; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(CPU_FLAGS) & frozenset(value.split())
    return frozenset()


def configure(threads: int, device: str) -> str:
    """Make torch deterministic; returns the device to use, "cpu" or "cuda". Raises UserError for one that is absent."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "the learner needs torch, which is not installed",
            "run `pip install '.[learner]'` in headrace's source tree",
        ) from error
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"HEADRACE_DEVICE is {device!r}", "use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("HEADRACE_DEVICE is cuda, but torch finds no CUDA device", "use auto or cpu")
    torch.set_num_threads(threads)
    # What torch.use_deterministic_algorithms(True) does, less its import of the compiler: 7 s of CPU at every start.
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    assert torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def describe(threads: int, device: str) -> dict[str, str]:
    """What bit identity depends on, as text: versions, processor, pins, device.

    numba and llvmlite compile half of the arithmetic, the C library has exp and log, and headrace's own version stands
    for its formulas: the package's, so that not every commit is another environment.
    """
    import numpy as np
    import torch

    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    described = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numpy_blas": f"{blas.get('name', '?')} {blas.get('version', '?')}",
        "numba": _version("numba"),
        "llvmlite": _version("llvmlite"),
        "libc": " ".join(platform.libc_ver()).strip() or "?",
        "headrace": _version("headrace"),
        "torch": str(torch.__version__),
        "torch_build": sha256(torch.__config__.show().encode()).hexdigest()[:16],
        "machine": platform.machine(),
        "cpu_flags": " ".join(sorted(cpu_flags())),
        "threads": str(threads),
        "device": device,
        "pins": " ".join(
            f"{name}={os.environ[name]}" for name in sorted(pins(threads, cpu_flags())) if name in os.environ
        ),
    }
    if device == "cuda":
        described |= {
            "cuda_device": torch.cuda.get_device_name(),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]  # torch has no types here
            "driver": _driver(),
        }
    return described


def _version(package: str) -> str:
    """As installed; without loading it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "?"


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return "?"


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What changed between two descriptions, in words; empty when the bits may be expected to agree."""
    names = sorted((set(before) | set(now)) - {ANCHOR, LINEAGE_BREAK})
    return [
        f"{name}: {_recorded(before, name)} → {_recorded(now, name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _recorded(description: Mapping[str, str], name: str) -> str:
    """An earlier headrace recorded less."""
    return repr(description[name]) if name in description else "not recorded"
