"""What every test shares."""

from __future__ import annotations

from hypothesis import settings

# no deadline: numba compiles on the first call, and speed is a matter of benchmarks/
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")
