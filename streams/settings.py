"""Settings of the stream workers, from the environment (prefix ``HEADRACE_``)."""

from __future__ import annotations

from pydantic import Field

from schemas.settings import CommonSettings


class WorkerSettings(CommonSettings):
    """Settings of the ingest and join roles beside those that every process shares."""

    metrics_host: str = Field("127.0.0.1", description="Address of /metrics, /live and /ready; 0.0.0.0 in a pod.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the same; 0 takes any free one and logs it.")
    declare_gap: bool = Field(
        False, description="Join: go on although the journal has lost records that were not joined; audit counts them."
    )
    decode_in_place: bool = Field(True, description="Decode Kafka record batches without a Python object per record.")
    heal_after_ms: int = Field(
        5_000,
        ge=500,
        description="A transition block acked so long ago and not accepted restarts its partition, once read-back has "
        "passed its offset; one that read-back has not reached has six times as long (docs/decisions, 22).",
    )
    open_decisions_max: int = Field(
        1_000_000,
        ge=1,
        description="Open decisions per partition; the oldest close early beyond it. The same everywhere.",
    )
    pending_outcomes_max: int = Field(100_000, ge=1, description="The same for outcomes that wait for a decision.")
    unread_bytes_max: int = Field(
        2 << 20,
        ge=1 << 20,
        description="Transitions per partition written but not read back; then the fold waits. Raise it where the "
        "broker is far away: no more than this goes out per round trip.",
    )
    linger_ms: float = Field(2.0, ge=0, description="How long a write waits for others to share its request.")
    compression: str = Field(
        "lz4", description="Compression of journal and transitions: none, lz4, zstd, gzip, snappy."
    )
    instance_id: str = Field(
        "",
        description="Name of this worker that outlives it (Kafka's group.instance.id, KIP-345): killed and started "
        "again, it has its partitions back at once, not after the session timeout; stopped for good, they move only "
        "after that. No two workers may share one; a StatefulSet's pod name is one.",
    )
    session_timeout_s: float = Field(
        10.0, ge=6, le=300, description="A silent worker's partitions move after this; plus 1 s."
    )
    heartbeat_s: float = Field(2.0, gt=0, description="Time between heartbeats to the group; a fifth of the session.")
    commit_interval_s: float = Field(1.0, gt=0, description="Time between commits of the group's offsets.")
    fetch_bytes_max: int = Field(4 << 20, ge=1 << 16, description="Bytes fetched per partition at once.")
    stop_s_max: float = Field(9.0, gt=0, description="SIGTERM: finish within this, else exit 1 (nothing is lost).")
    stall_s_max: float = Field(
        60.0, gt=0, description="Not live when log time stands still for so long while there is something to read."
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
