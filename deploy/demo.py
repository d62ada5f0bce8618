"""`headrace demo`: the whole loop on real input, in about two minutes, with its own broker.

Owns the order of things: broker, topics, keys, definitions, processes, the shop, the wait until every window has closed
and all of it is joined, the end of every process, the audit, the report. Whatever goes wrong, no process is left.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from deploy import demo_picture, demo_report, stack
from deploy.audit import AuditReport, audit
from deploy.demo_view import View
from deploy.outputs import clear, require_folder
from deploy.probes import is_ready, metric
from deploy.supervisor import EARLY_STOP_S, Child, Supervisor
from deploy.watch import Figures, Watch
from schemas.errors import UserError
from schemas.task import Project, load
from schemas.topics import topic

READY_S = 300.0
"""On a fresh machine the processes compile first: half a minute on two idle cores, minutes on busy ones."""
DRAIN_S = 60.0
LOOK_EVERY_S = 0.5
REPORT_FILE, PICTURE_FILE = "demo-report.json", "demo-report.png"
REFUSED_METRIC = "headrace_decide_snapshots_refused"


@dataclass(frozen=True, slots=True)
class Demo:
    """What to run and where to leave what comes of it."""

    example: Path
    """Folder with headrace.toml, shop.py and train.csv."""
    out: Path
    """Folder of the report and the picture."""
    seed: int
    rate: float
    messages: int | None
    """Only the first so many; None: all."""
    headless: bool
    bootstrap: str | None
    """An existing cluster; None: a broker of our own."""
    folder: Path | None
    """Where state and logs stay; None: a temporary folder, removed when all went well."""


def run(demo: Demo) -> int:
    """Run the demo; 0 when the audit is clean, 130 when it was interrupted."""
    project = _project(demo)
    require_folder(demo.out, "the folder of the report", "--out")
    clear(demo.out, (REPORT_FILE, PICTURE_FILE))
    folder = demo.folder or Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    require_folder(folder, "the folder of state and logs", "--folder")
    succeeded = False
    try:
        with (folder / "processes.log").open("w") as log, Supervisor(say=_into(log)) as supervisor:
            once = _Run(demo, project, folder, supervisor)
            code = once.play()
            if once.summary:
                print(once.summary)  # below the live screen
        succeeded = code in (0, 130)
        return code
    finally:
        if succeeded and demo.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif not succeeded:
            print(f"What the processes said is in {folder}/processes.log", file=sys.stderr)


class _Run:
    """One run: the steps in order."""

    def __init__(self, demo: Demo, project: Project, folder: Path, supervisor: Supervisor) -> None:
        self.demo, self.project, self.folder, self.supervisor = demo, project, folder, supervisor
        self.watch: Watch | None = None
        self.summary = ""
        """What came of it, in a line."""
        self.figures = Figures()
        labels = _labels(demo)
        self.num_actions = len(project.tasks[0].actions)
        self.best_constant = max(labels.values()) / sum(labels.values())
        self.view = View(self.figures, 1 / self.num_actions, self.best_constant, demo.headless)

    def play(self) -> int:
        """Everything; the exit code."""
        with self.view.shown():
            self.view.say("starting the broker" if self.demo.bootstrap is None else "looking for the broker")
            try:
                ready = stack.prepare(self.project, self.folder, self.demo.bootstrap, port=0)
                try:
                    return self._serve(ready)
                finally:
                    # Nothing of an interrupted demo is needed again: no reason to let anybody wait.
                    limits = (EARLY_STOP_S,) if self.supervisor.is_stopping else ()
                    self.supervisor.end(*limits)
                    ready.close(*limits)
            except (_Interrupted, KeyboardInterrupt):
                return 130

    def _serve(self, ready: stack.Stack) -> int:
        self.view.say("starting the workers and the learner (the first start on a machine compiles)")
        ready.start(self.supervisor)
        self._wait("the processes did not get ready", READY_S, lambda: all(map(is_ready, ready.metrics_ports.values())))
        self.watch = watch = Watch(ready.settings, self.figures).start()
        try:
            self.view.say("the shop is open")
            shop = self._open_shop(ready)
            self._wait("the shop did not end", 3600.0, lambda: shop.code is not None, allowed=shop)
            self.view.say("the shop has closed; waiting for the last windows")
            self._wait("the last windows did not close", DRAIN_S, lambda: self._is_drained(shop))
            num_refused = int(metric(ready.metrics_ports["decide"], REFUSED_METRIC))
        finally:
            watch.close()
        self.view.say("ending the processes")
        self.supervisor.end()
        self._heed()  # from here on, with no process left, an interrupt breaks in
        self.view.say("auditing the log")
        return self._report(ready, audit(ready.settings), num_refused)

    def _open_shop(self, ready: stack.Stack) -> Child:
        options = {
            "--bootstrap": ready.settings.bootstrap,
            "--namespace": ready.settings.namespace,
            "--seed": str(self.demo.seed),
            "--rate": str(self.demo.rate),
            "--report": str(self.folder / "shop.json"),
            "--kafka-options": json.dumps(ready.settings.kafka_options),
        }
        if self.demo.messages is not None:
            options["--limit"] = str(self.demo.messages)
        command = [
            sys.executable,
            str(self.demo.example / "shop.py"),
            *(text for pair in options.items() for text in pair),
        ]
        return self.supervisor.start_command("shop", command)

    def _is_drained(self, shop: Child) -> bool:
        """Every decision of the journal is closed, joined and read back, and every outcome settled."""
        decisions, outcomes = self.figures.buckets()
        everything = len(self.figures.progress) == self.project.namespace.partitions
        settled = decisions["open"] == 0 and outcomes["pending"] == 0
        return everything and settled and self.figures.num_decisions == sum(decisions.values())

    def _wait(self, failure: str, timeout_s: float, done: Callable[[], bool], allowed: Child | None = None) -> None:
        """Until `done`, showing the figures; raises when a process ends, the time is up or somebody interrupts."""
        deadline = time.monotonic() + timeout_s
        self._heed()
        while not done():
            ended = self.supervisor.first_ended()
            if ended is not None and ended.name != "shop" and ended is not allowed:
                raise UserError(
                    f"{ended.name} ended with code {ended.code}; it said: {ended.last_words.rstrip('.')}", "see its log"
                )
            if (gone := self.supervisor.first_gone()) is not None:
                raise UserError(f"the {gone} has ended, and it was not us who ended it", "run the demo again")
            if self.watch is not None and self.watch.failure is not None:
                raise self.watch.failure
            if time.monotonic() > deadline:
                raise UserError(f"{failure} within {timeout_s:.0f} s", "see the log")
            self.view.update()
            time.sleep(LOOK_EVERY_S)
            self._heed()

    def _heed(self) -> None:
        """Raise when somebody has interrupted."""
        if self.supervisor.is_stopping:
            raise _Interrupted

    def _report(self, ready: stack.Stack, audited: AuditReport, num_refused: int) -> int:
        logged = demo_report.read(ready.settings)
        shop = json.loads((self.folder / "shop.json").read_text())
        outcomes = topic(ready.settings.namespace, "outcomes")
        report = demo_report.build(logged, audited, shop, self.num_actions, outcomes, num_refused)
        (self.demo.out / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        drawn = demo_picture.draw(
            self.demo.out / PICTURE_FILE, logged.rewards, report["uniform_reward"], self.best_constant
        )
        self.summary = _summary(report, self.demo.out, drawn)
        self.view.say("finished")
        return 0 if audited.is_clean else 1


class _Interrupted(Exception):
    """Ctrl-C or SIGTERM: leave in order."""


def _summary(report: dict[str, Any], out: Path, drawn: bool) -> str:
    close = report["window_close_to_serving_ms"]["p50"]
    verdict = report["audit"] if report["audit"] == "clean" else "; ".join(report["audit"][:3])
    first, last, uniform = (report[name] for name in ("reward_first_1000", "reward_last_1000", "uniform_reward"))
    return (
        f"reward {first} → {last} (uniform {uniform:.3f}), "
        f"{report['decisions']} decisions, {report['transitions']} transitions, audit {verdict}, "
        f"window close → serving {close} ms; {out / REPORT_FILE}{f', {out / PICTURE_FILE}' if drawn else ''}"
    )


def _project(demo: Demo) -> Project:
    for name in ("headrace.toml", "shop.py", "train.csv"):
        if not (demo.example / name).exists():
            raise UserError(
                f"the demo's {name} is not in {demo.example}",
                "run it in the source tree, or name the folder with --example",
            )
    project = load(demo.example / "headrace.toml")
    return replace(project, draws_freely=False)  # the same seed, the same draws: the key of the namespace's name


def _labels(demo: Demo) -> Counter[str]:
    """How often each route is the right one, for the line that the best constant route would draw."""
    with (demo.example / "train.csv").open(newline="", encoding="utf-8") as file:
        return Counter(row["category"] for row in csv.DictReader(file))


def _into(log: IO[str]) -> Callable[[str], None]:
    def say(line: str) -> None:
        if not log.closed:
            log.write(line + "\n")
            log.flush()

    return say
