"""The catalogue of the stream workers' metrics: each with its unit, its meaning and what to do about it.

Roles: `ingest` (users' topics → journal), `join` (journal → transitions) and `decide` share it.
"""

from __future__ import annotations

from schemas.telemetry import Metric, Metrics

SLOW_REMEDY = "Add workers up to the number of partitions; look at the CPU of those that run."

INGEST = (
    Metric(
        "headrace_ingest_records", "counter", "records", "Records read from a source topic.", "none needed", ("topic",)
    ),
    Metric(
        "headrace_ingest_outcomes",
        "counter",
        "records",
        "Outcomes written to the journal and acked.",
        "none needed",
        ("topic",),
    ),
    Metric(
        "headrace_ingest_passed_over",
        "counter",
        "records",
        "Records that the `where` of their source leaves out.",
        "Check the `where` of the source if this grows unexpectedly.",
        ("topic",),
    ),
    Metric(
        "headrace_ingest_lag_records",
        "gauge",
        "records",
        "Records of a source partition not yet read.",
        SLOW_REMEDY,
        ("topic", "partition"),
    ),
    Metric(
        "headrace_ingest_source_made_anew",
        "gauge",
        "partitions",
        "1: the join has read this source partition further than it reaches; what it holds up to there is not counted.",
        "Never delete and make again a topic that is read: give the new one another name. See the log.",
        ("topic", "partition"),
    ),
    Metric(
        "headrace_ingest_batch_seconds", "histogram", "seconds", "Fetched batch → written to the journal.", SLOW_REMEDY
    ),
)

JOIN = (
    Metric("headrace_join_blocks", "counter", "blocks", "Journal records folded.", "none needed", ("partition",)),
    Metric(
        "headrace_join_progress_ms",
        "gauge",
        "ms",
        "Log time T reached by the fold; it must move while there is something to read.",
        "Standing still: see the log for an unknown task or a broker that is gone; liveness restarts the worker.",
        ("partition",),
    ),
    Metric(
        "headrace_join_read_back_ms",
        "gauge",
        "ms",
        "Log time up to which every closed row was read back accepted (the newest Progress).",
        "Far behind progress: transitions are not acked or not accepted; see headrace_join_restarts.",
        ("partition",),
    ),
    Metric(
        "headrace_join_lag_records", "gauge", "records", "Journal records not yet folded.", SLOW_REMEDY, ("partition",)
    ),
    Metric(
        "headrace_join_open_decisions",
        "gauge",
        "decisions",
        "Decisions whose reward window has not ended.",
        "Memory grows with it: shorten windows, or lower HEADRACE_OPEN_DECISIONS_MAX.",
        ("partition",),
    ),
    Metric(
        "headrace_join_decisions",
        "gauge",
        "decisions",
        "Decisions of the partition by bucket, as in the newest Progress; they sum to the decisions read.",
        "Many conflicts: the shop shows something else than what was decided. Many duplicates: its client retries.",
        ("partition", "bucket"),
    ),
    Metric(
        "headrace_join_outcomes",
        "gauge",
        "outcomes",
        "Outcomes of the partition by bucket, as in the newest Progress.",
        "Orphans: the subject of an outcome must equal its decision's. Late: widen the window.",
        ("partition", "bucket"),
    ),
    Metric(
        "headrace_join_transitions", "counter", "rows", "Rows accepted by read-back.", "none needed", ("partition",)
    ),
    Metric(
        "headrace_join_holes",
        "counter",
        "blocks",
        "Blocks read back whose predecessor is missing; the partition restarts from what was accepted.",
        "Now and then after a broker failure: none needed. Steadily: look for a second writer or lost writes.",
        ("partition",),
    ),
    Metric(
        "headrace_join_forks",
        "counter",
        "blocks",
        "Blocks that contradict what was accepted.",
        "Two versions of headrace or of a task definition write one partition: run one of them, then `headrace audit`.",
        ("partition",),
    ),
    Metric(
        "headrace_join_restarts",
        "counter",
        "restarts",
        "Partitions rebuilt from the read-back state, by cause.",
        "See the log line of the same time; each costs the journal of a few reward windows read again.",
        ("partition", "cause"),
    ),
    Metric(
        "headrace_join_unknown_task",
        "gauge",
        "1",
        "1 while a partition waits for a task definition that its journal refers to.",
        "Apply the task again (`headrace apply`); never delete a definition while the journal holds its decisions.",
        ("partition",),
    ),
    Metric(
        "headrace_join_declared_gap_records",
        "counter",
        "records",
        "Journal records gone before they were joined, gone over by --declare-gap.",
        "Raise the retention of the journal.",
        ("partition",),
    ),
    Metric(
        "headrace_join_clock_skew_ms",
        "gauge",
        "ms",
        "Append time of the newest record minus our clock when it was folded live.",
        "Beyond 1,000: a broker's clock or ours is off: set up NTP. Windows are measured by the broker's.",
        ("partition",),
    ),
)

DECIDE = (
    Metric(
        "headrace_decide_decisions",
        "counter",
        "decisions",
        "Answers by reason; `policy` is the normal one.",
        "no-snapshot, snapshot-refused: see headrace_decide_snapshots_refused. overload, deadline: more workers. "
        "expired: the worker was away for long. invalid, unknown-task, too-large: see the dead letters.",
        ("task", "reason"),
    ),
    Metric(
        "headrace_decide_latency_seconds",
        "histogram",
        "seconds",
        "Append time of the request → the broker has the answer (two machines' clocks).",
        SLOW_REMEDY,
    ),
    Metric("headrace_decide_batch_seconds", "histogram", "seconds", "Computing one micro-batch.", SLOW_REMEDY),
    Metric(
        "headrace_decide_redelivered",
        "counter",
        "requests",
        "Requests read again after a takeover and answered as the journal has them.",
        "none needed",
    ),
    Metric(
        "headrace_decide_in_flight",
        "gauge",
        "requests",
        "Requests read whose answer is not delivered yet.",
        SLOW_REMEDY,
    ),
    Metric(
        "headrace_decide_lag_records",
        "gauge",
        "records",
        "Requests of a partition not yet read.",
        SLOW_REMEDY,
        ("partition",),
    ),
    Metric(
        "headrace_decide_internal_errors",
        "counter",
        "requests",
        "Requests that our own code failed on; answered with the baseline, in the dead letters as internal-error.",
        "Report it with the traceback of the log.",
    ),
    Metric(
        "headrace_decide_snapshot_version",
        "gauge",
        "1",
        "Version of the policy that serves; 0: none, the baseline.",
        "none needed",
    ),
    Metric(
        "headrace_decide_snapshot_cut_ms",
        "gauge",
        "ms",
        "Log time up to which closed decisions are in the policy that serves.",
        "Far behind the clock: is the learner alive, do rewards come, are snapshots refused?",
    ),
    Metric(
        "headrace_decide_snapshot_age_seconds",
        "gauge",
        "seconds",
        "Our clock minus the log time up to which closed decisions are in the policy that serves.",
        "Growing: is the learner alive, do rewards come, are snapshots refused?",
    ),
    Metric(
        "headrace_decide_snapshots_taken",
        "counter",
        "snapshots",
        "Snapshots that passed every check and served.",
        "none needed",
    ),
    Metric(
        "headrace_decide_snapshots_refused",
        "counter",
        "snapshots",
        "Snapshots refused, by reason; the last good one goes on serving, each refused one is a dead letter.",
        "bad-signature, no-signature, old-version: who else writes to the model topic? probes: another numpy or CPU "
        "computes otherwise; the others: damage on the way, see the log.",
        ("reason",),
    ),
)

SHARED = (
    Metric(
        "headrace_dead_letters",
        "counter",
        "records",
        "Records that could not be used, by topic and reason; each stands in the dead-letters topic.",
        "`headrace dead-letters` shows which record, why and its first bytes; `headrace lint` tells before it is sent.",
        ("topic", "reason"),
    ),
    Metric(
        "headrace_write_errors",
        "counter",
        "records",
        "Writes that the broker refused or that were given up.",
        "The reason is in the log: usually a record larger than the topic allows, or missing permission.",
        ("topic",),
    ),
    Metric(
        "headrace_event_loop_lag_seconds",
        "gauge",
        "seconds",
        "How late the event loop came to its last heartbeat.",
        "Above 1 s: batches too large or the machine too busy.",
    ),
)

CATALOGUE = (*INGEST, *JOIN, *DECIDE, *SHARED)


def worker_metrics() -> Metrics:
    """The metrics of one worker process."""
    return Metrics(CATALOGUE)
