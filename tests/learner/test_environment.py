"""Environment: pinned before anything is computed, described in words, compared word by word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import llvmlite
import numba
import pytest

from learner import environment
from learner.cuts import CutState
from learner.merge import Position
from learner.published import Published
from learner.restore import _keep_or_break_lineage
from schemas.errors import UserError


def test_thread_counts_are_the_settings_and_never_the_machines() -> None:
    variables = environment.pins(3, frozenset())
    assert {variables[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL")} == {"3"}
    assert "OPENBLAS_CORETYPE" not in variables


def test_processors_with_and_without_avx512_use_the_same_kernels() -> None:
    older = environment.pins(1, frozenset({"avx2", "fma"}))
    newer = environment.pins(1, frozenset({"avx2", "fma", "avx512f"}))
    assert older == newer
    assert older["MKL_CBWR"] == "AVX2"


def test_process_starts_itself_again_under_the_pins_once() -> None:
    program = (
        "import json, os, sys\n"
        "from learner import environment\n"
        "assert 'numpy' not in sys.modules, 'BLAS would have chosen its kernels already'\n"
        "environment.pin(2)\n"
        "print(json.dumps([os.environ['OMP_NUM_THREADS'], os.environ['HEADRACE_PINNED'], sys.argv[1:]]))\n"
    )
    bare = {name: value for name, value in os.environ.items() if name != environment.MARK}
    done = subprocess.run(
        [sys.executable, "-c", program, "flag"], env=bare | {"PYTHONPATH": "."}, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == ["2", "2", ["flag"]]


def test_torch_is_made_deterministic_and_tf32_is_off() -> None:
    import torch

    assert environment.configure(1, "cpu") == "cpu"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_device_that_is_no_device_is_refused() -> None:
    with pytest.raises(UserError, match="HEADRACE_DEVICE is 'abacus'"):
        environment.configure(1, "abacus")


def test_description_names_what_bits_depend_on() -> None:
    described = environment.describe(1, "cpu")
    assert {"numpy", "numpy_blas", "torch", "torch_build", "machine", "cpu_flags", "threads", "device", "pins"} <= set(
        described
    )
    assert environment.differences(described, dict(described)) == []
    changed = environment.differences(described, described | {"torch": "other", "anchor": "a day"})
    assert len(changed) == 1
    assert changed[0].startswith("torch: ")


def test_description_names_what_compiles_half_of_the_arithmetic() -> None:
    described = environment.describe(1, "cpu")
    assert {"numba", "llvmlite", "libc", "headrace"} <= set(described)
    assert described["numba"] == numba.__version__
    assert described["llvmlite"] == llvmlite.__version__


def test_an_upgrade_of_the_compiler_asks_for_a_lineage_break() -> None:
    before = environment.describe(1, "cpu")
    assert environment.differences(before, before | {"numba": "0.1"}) == [f"numba: {before['numba']!r} → '0.1'"]


def test_a_description_of_before_is_refused_in_words() -> None:
    now = environment.describe(1, "cpu")
    earlier = {name: value for name, value in now.items() if name not in ("numba", "llvmlite", "libc", "headrace")}
    learner: Any = SimpleNamespace(environment=now, cut=CutState.start([Position(0)], 0), last=None)
    with pytest.raises(UserError, match=rf"llvmlite: not recorded → '{llvmlite.__version__}'") as caught:
        _keep_or_break_lineage(learner, earlier, Published(), allow=False)
    assert "--allow-lineage-break" in caught.value.remedy
