"""Decide a made-up request of every task once, before the first real one waits for it.

numba loads its compiled functions at their first call: seconds without its cache, tenths with it. Nothing of a
rehearsal leaves the process.
"""

from __future__ import annotations

import logging
import time

from schemas.codec import decode_request, encode
from schemas.registry import Registry
from streams.decide import Asked, Decide, Situation
from streams.decision_blocks import merged, parts_of
from streams.examples import example_of
from streams.policy import Policy, blank_policy
from streams.replies import encoded_answer
from streams.tasks import TaskFollower

log = logging.getLogger(__name__)


def rehearse(decide: Decide, tasks: TaskFollower, registry: Registry, policy: Policy | None = None) -> None:
    """Run every step from bytes to bytes for each current task, with a policy (blank if none serves) and without."""
    started_s = time.monotonic()
    if policy is None:
        policy = blank_policy(tasks.table)
    for task in tasks.table.current:
        request = example_of(task)
        for payload in (encode(request, registry), encode(request, registry)):
            asked = Asked(decode_request(payload, registry), 0, 0, 0)
            for situation in (Situation(now_ms=0, policy=policy), Situation(now_ms=0)):
                decided = decide.batch([asked], situation)
                for group in decided.groups:
                    for _, part in parts_of(group.task, group.version, group.rows, group.columns, ""):
                        encode(part.block(), registry)
                        encode(merged([part, part]).block(), registry)
                    for decision in group.decisions:
                        encoded_answer(decision, True, registry)
                        encoded_answer(decision, False, registry)
    log.info("rehearsed %d tasks in %.1f s", len(tasks.table.current), time.monotonic() - started_s)
