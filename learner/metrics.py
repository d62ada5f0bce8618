"""The catalogue of the learner's metrics: each with its unit, its meaning and what to do about it."""

from __future__ import annotations

from schemas.telemetry import Metric, Metrics

CATALOGUE = (
    Metric(
        "headrace_learner_rows_accepted",
        "gauge",
        "rows",
        "Rows that left the merge since this history began, by decision bucket.",
        "Compare with the join's counts when a bucket grows unexpectedly.",
        ("bucket",),
    ),
    Metric(
        "headrace_learner_rows_learnt",
        "gauge",
        "rows",
        "Rows learnt per task since its heads were new.",
        "If it stands still while decisions are made: look at headrace_learner_log_time_ms.",
        ("task",),
    ),
    Metric(
        "headrace_learner_rewards_clipped",
        "gauge",
        "rows",
        "Rows learnt per task whose reward lay outside reward.min and reward.max and was clipped there.",
        "Now and then: none needed. Many of headrace_learner_rows_learnt: widen the bounds, or see what an outcome's "
        "value means; what lies beyond a bound is learnt as the bound.",
        ("task",),
    ),
    Metric(
        "headrace_learner_solves_failed",
        "gauge",
        "solves",
        "Solves of a task's wide head that no ridge made possible; the weights before were kept.",
        "Must be 0: the task learns no more. Look for a feature without sense in the newest decisions "
        "(`headrace explain`), apply the task without it, and report the checkpoint.",
        ("task",),
    ),
    Metric(
        "headrace_learner_rows_unfit",
        "gauge",
        "rows",
        "Rows that do not fit their task's definition (widths, catalogue, choice) and were not learnt.",
        "Should be 0: some writer of the journal encodes otherwise than the definition says.",
    ),
    Metric(
        "headrace_learner_log_time_ms",
        "gauge",
        "ms",
        "Log time T reached in a partition: the newest Progress that counts.",
        "A partition that stands still holds learning back: its join worker is gone or waits.",
        ("partition",),
    ),
    Metric(
        "headrace_learner_lag_records",
        "gauge",
        "records",
        "Transition records of a partition not yet read.",
        "If it grows for long, the learner is too slow for the rate: give it a GPU or fewer experts.",
        ("partition",),
    ),
    Metric(
        "headrace_learner_alarms",
        "counter",
        "records",
        "Records that the log should not hold: hole, fork, late, stray, malformed.",
        "A hole heals when the join restarts the partition; for a fork run `headrace audit` and read its docs.",
        ("kind", "partition"),
    ),
    Metric(
        "headrace_learner_waiting_bytes",
        "gauge",
        "bytes",
        "Rows that wait for slower partitions.",
        "At its limit faster partitions are paused; find the slow one in headrace_learner_log_time_ms.",
    ),
    Metric(
        "headrace_learner_unknown_task",
        "gauge",
        "1",
        "1 while rows wait for a task that the tasks topic does not hold.",
        "Run `headrace apply` with the definition that the decisions were made under.",
    ),
    Metric("headrace_learner_cuts", "gauge", "cuts", "Cuts made since this history began.", "none needed"),
    Metric("headrace_learner_snapshot_version", "gauge", "1", "Newest version published.", "none needed"),
    Metric("headrace_learner_snapshots_published", "counter", "snapshots", "Snapshots published.", "none needed"),
    Metric(
        "headrace_learner_snapshots_overtaken",
        "counter",
        "snapshots",
        "Snapshots that a newer one overtook before their upload began.",
        "If it grows in normal running, uploads are slow: see headrace_learner_upload_seconds.",
    ),
    Metric(
        "headrace_learner_reuploads", "counter", "snapshots", "Uploads that renewed the current version.", "none needed"
    ),
    Metric(
        "headrace_learner_publish_failures",
        "counter",
        "snapshots",
        "Uploads that failed and were tried again, or whose manifest is too large for a message.",
        "See whether the broker is healthy and its disk not full; a manifest that is too large is named in the log.",
    ),
    Metric(
        "headrace_learner_equivocations",
        "counter",
        "snapshots",
        "Versions that were made here with other bytes than somebody published under them.",
        "A second learner runs and learns something else, or bit identity is broken: look for a changed library, "
        "machine or setting; what is published stays as it is.",
    ),
    Metric(
        "headrace_learner_cut_seconds", "histogram", "seconds", "Time to solve, pack and hash one cut.", "none needed"
    ),
    Metric(
        "headrace_learner_step_seconds",
        "histogram",
        "seconds",
        "Time from a read of the log to the end of what it made learnable.",
        "none needed",
    ),
    Metric(
        "headrace_learner_upload_seconds",
        "histogram",
        "seconds",
        "Time to write one snapshot's chunks and manifest.",
        "If near publish_ms: lower the tables' size (cross_bits) or raise publish_ms.",
    ),
    Metric(
        "headrace_learner_cut_to_topic_seconds",
        "histogram",
        "seconds",
        "From a cut's log time to its manifest's ack, by this machine's clock.",
        "Mind the clocks; otherwise see the step, cut and upload times.",
    ),
    Metric(
        "headrace_learner_checkpoint_seconds",
        "histogram",
        "seconds",
        "Time to write one checkpoint, beside learning.",
        "none needed",
    ),
)


def make() -> Metrics:
    """The learner's metrics, all at zero."""
    return Metrics(CATALOGUE)
