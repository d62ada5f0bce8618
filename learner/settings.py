"""Settings of the learner, from the environment (prefix ``HEADRACE_``) or flags of the same name."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from schemas.settings import CommonSettings


class LearnerSettings(CommonSettings):
    """What `headrace learn` reads beside the common settings. How to learn is the task's business, not set here."""

    signing_key: Path | None = Field(
        None, description="File of the private key that signs snapshots; made by `headrace keys create`."
    )
    device: str = Field("auto", description="auto (CUDA where present), cpu, or cuda.")
    threads: int = Field(
        1,
        ge=1,
        description="Threads of every numeric library. Bit identity is promised for 1: with 2, learners that were "
        "resumed from a checkpoint have been seen to compute other bits than those that were not.",
    )
    allow_lineage_break: bool = Field(
        False, description="Go on in another environment than the checkpoint's; the manifests then say so."
    )
    channel: str = Field("main", description="Key under which manifests are published.")
    publish_bytes_per_s: int = Field(
        16 << 20, ge=1 << 10, description="Snapshots are spaced so that their bytes per second of log time stay below."
    )
    checkpoint_dir: Path | None = Field(
        None, description="Folder of checkpoints; default <state_dir>/learner/<namespace>."
    )
    checkpoint_s: float = Field(60.0, gt=0, description="Time between checkpoints while rows come.")
    checkpoint_cuts: int = Field(600, ge=1, description="Cuts between checkpoints, whichever comes first.")
    checkpoints_kept: int = Field(3, ge=2, description="Newest checkpoints kept; a damaged one falls back to the next.")
    anchors_kept: int = Field(8, ge=0, description="Daily checkpoints kept beside them: how far back replay reaches.")
    reupload_s: float = Field(
        6 * 3600.0, gt=0, description="Time after which the current version's chunks are uploaded again."
    )
    waiting_bytes_max: int = Field(
        256 << 20, ge=1 << 20, description="Rows that wait for slower partitions; beyond it faster ones are paused."
    )
    stop_s_max: float = Field(9.0, gt=0, description="SIGTERM: finish within this, else exit 1 (nothing is lost).")
    metrics_host: str = Field("127.0.0.1", description="Address of /metrics, /live and /ready.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the same; 0 means any free one.")

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.checkpoint_dir or self.state_dir / "learner" / self.namespace
