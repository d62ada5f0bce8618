"""Decisions over Kafka, beside a bare confluent-kafka echo in the same run: p50, p99, p99.9 from intended send times.

One request: 8 context features, 10 candidates of 4 features, JSON, as a shop sends it. The worker serves a real policy
(learnt from the first seconds of the run by the whole loop; join and learner are ended before anything is measured).
Run: python -m benchmarks.decision_latency [--seconds 15] [--rates 200 1000] [--runs 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.open_loop import as_dict, decision_index, measure
from benchmarks.record import keep
from deploy import broker
from deploy.processes import wait_until
from deploy.stack import Stack, prepare
from deploy.supervisor import Supervisor
from schemas.task import parse
from schemas.topics import topic

NUM_CONTEXT, NUM_CANDIDATES, NUM_ACTION = 8, 10, 4
NUM_TAUGHT = 1_500
"""Requests and outcomes from which the policy under measurement is learnt."""
WARM_BROKER_S = 40.0
"""Echo before anything is measured: a broker that has just started spends half of its time compiling itself (1.4
instead of 0.75 ms of processor time a request on two slow cores), and whatever is measured first would pay for it."""

TOML = """
[namespace]
name = "{namespace}"
partitions = 4

[[tasks]]
name = "offer"
kind = "choice"
reply = "{reply}"

[tasks.context]
{context}

[tasks.action]
{action}

[tasks.reward]
window = "1s"

[tasks.reward.outcomes.click]
aggregate = "max"
weight = 1.0
binary = true
"""


def declared(namespace: str, reply: str) -> str:
    """The task."""
    context = "\n".join(f'c{i} = {{ kind = "number" }}' for i in range(NUM_CONTEXT))
    action = "\n".join(f'a{i} = {{ kind = "number" }}' for i in range(NUM_ACTION))
    return TOML.format(namespace=namespace, reply=reply, context=context, action=action)


def request(rng: np.random.Generator, decision_id: str, subject: str) -> bytes:
    """One request as JSON."""
    context = {f"c{i}": round(float(x), 3) for i, x in enumerate(rng.standard_normal(NUM_CONTEXT))}
    candidates = [
        {
            "action_id": f"item-{k}",
            "features": {f"a{i}": round(float(x), 3) for i, x in enumerate(rng.standard_normal(NUM_ACTION))},
        }
        for k in range(NUM_CANDIDATES)
    ]
    body = {
        "decision_id": decision_id,
        "task": "offer",
        "subject": subject,
        "context": context,
        "candidates": candidates,
    }
    return json.dumps(body).encode()


def teach(stack: Stack, log: Path) -> None:
    """Send requests and outcomes until the worker serves a snapshot."""
    rng = np.random.default_rng(0)
    producer = Producer({"bootstrap.servers": stack.settings.bootstrap, "linger.ms": 0})
    names = [topic(stack.settings.namespace, name) for name in ("requests", "outcomes")]
    for number in range(NUM_TAUGHT):
        subject = f"s{number % 50}"
        producer.produce(names[0], request(rng, f"teach-{number}", subject), subject)
        outcome = {"subject": subject, "decision_id": f"teach-{number - 100}", "type": "click", "value": number % 2}
        if number >= 100:
            outcome["subject"] = f"s{(number - 100) % 50}"
            producer.produce(names[1], json.dumps(outcome).encode(), outcome["subject"])
        producer.poll(0)
        time.sleep(0.004)
    producer.flush(10)
    if not wait_until(lambda: snapshot_version(stack) > 0, 30.0, 0.2):
        sys.exit(f"no snapshot serves after 30 s: the loop does not run\n{log.read_text()[-3000:]}")


def metric(stack: Stack, name: str) -> float:
    """Sum of a metric of the decide process over its labels; 0 when it is not there yet."""
    url = f"http://127.0.0.1:{stack.metrics_ports['decide']}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def snapshot_version(stack: Stack) -> float:
    """Version that the worker serves."""
    return metric(stack, "headrace_decide_snapshot_version")


def measured_worker(folder: Path, bootstrap: str, reply: str, rates: list[float], seconds: float) -> dict[str, Any]:
    """Latency of one worker at every rate, with what it spent computing."""
    name = f"bench{time.time_ns()}"
    stack = prepare(parse(declared(name, reply)), folder / name, bootstrap, 0)
    result = {}
    with Supervisor(lambda line: (folder / f"{name}.log").open("a").write(line + "\n")) as supervisor:
        stack.start(supervisor)
        time.sleep(5)
        teach(stack, folder / f"{name}.log")
        for child in supervisor.children:
            if child.name != "decide":
                child.process.terminate()
                child.process.wait(20)
        for rate in rates:
            rng = np.random.default_rng(1)
            tag = f"m{time.time_ns()}"

            def make(number: int, tag: str = tag, rng: np.random.Generator = rng) -> tuple[bytes, bytes]:
                subject = f"s{number % 997}"
                return subject.encode(), request(rng, f"{tag}-{number}", subject)

            spent, batches = (metric(stack, f"headrace_decide_batch_seconds_{part}") for part in ("sum", "count"))
            latency = measure(
                bootstrap, topic(name, "requests"), topic(name, "decisions"), make, decision_index, rate, seconds
            )
            result[f"{rate:g}/s"] = {
                **as_dict(latency),
                "compute_ms_per_batch": round(
                    (metric(stack, "headrace_decide_batch_seconds_sum") - spent)
                    / max(1.0, metric(stack, "headrace_decide_batch_seconds_count") - batches)
                    * 1e3,
                    3,
                ),
            }
    return result


def measured_echo(folder: Path, bootstrap: str, rates: list[float], seconds: float) -> dict[str, Any]:
    """The same requests through a worker that only sends them back."""
    name = f"echo{time.time_ns()}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    made = admin.create_topics([NewTopic(f"{name}.{end}", 4, 1) for end in ("in", "out")])
    for future in made.values():
        future.result(20)
    command = [sys.executable, "-m", "benchmarks.echo", bootstrap, f"{name}.in", f"{name}.out"]
    child = subprocess.Popen(command)
    result = {}
    try:
        time.sleep(6)
        for rate in rates:
            rng = np.random.default_rng(1)
            tag = f"m{time.time_ns()}"

            def make(number: int, tag: str = tag, rng: np.random.Generator = rng) -> tuple[bytes, bytes]:
                subject = f"s{number % 997}"
                return subject.encode(), request(rng, f"{tag}-{number}", subject)

            latency = measure(bootstrap, f"{name}.in", f"{name}.out", make, decision_index, rate, seconds)
            result[f"{rate:g}/s"] = as_dict(latency)
    finally:
        child.terminate()
        child.wait(10)
    return result


def main() -> None:
    """Echo, journal-first, immediate, echo again … so that a slow minute hits all alike, on a broker that is warm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rates", type=float, nargs="+", default=[200, 1000])
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = broker.start(folder / "broker", port=0, tied=True)
        try:
            measured_echo(folder, running.bootstrap, [max(options.rates)], WARM_BROKER_S)
            for _ in range(options.runs):
                each = {"echo": measured_echo(folder, running.bootstrap, options.rates, options.seconds)}
                for reply in ("journal-first", "immediate"):
                    each[reply] = measured_worker(folder, running.bootstrap, reply, options.rates, options.seconds)
                runs.append(each)
                print(json.dumps(each), flush=True)
        finally:
            broker.stop(folder / "broker")
    ratios = {
        f"{reply} p50 over echo at {rate:g}/s": [
            round(run[reply][f"{rate:g}/s"]["p50_ms"] / run["echo"][f"{rate:g}/s"]["p50_ms"], 2) for run in runs
        ]
        for reply in ("journal-first", "immediate")
        for rate in options.rates
    }
    keep("decision_latency", {"ratios": ratios, "runs": runs})


if __name__ == "__main__":
    main()
