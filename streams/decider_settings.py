"""Settings of the decide role, from the environment (prefix ``HEADRACE_``)."""

from __future__ import annotations

from pydantic import Field

from streams.settings import WorkerSettings


class DeciderSettings(WorkerSettings):
    """What `headrace worker decide` reads beside the settings of every worker."""

    insecure_dev: bool = Field(
        False, description="Decide: serve snapshots without a public key. For a trial on one machine only."
    )
    decide_batch_max: int = Field(256, ge=1, le=4096, description="Decide: requests decided together at most.")
    decide_backlog_max: int = Field(
        5_000, ge=1, description="Decide: with more requests waiting, answers are baselines with the reason overload."
    )
    decide_in_flight_max: int = Field(
        2_000, ge=1, description="Decide: requests read and not yet answered; beyond it no more are read."
    )
    decide_commit_s: float = Field(
        0.2, gt=0, description="Decide: time between commits; requests since the last one are looked up after a crash."
    )
