"""`headrace torture`: open the stage, let the shop in, break things, heal, drain, judge."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy import broker_training, processes
from deploy.audit import audit
from deploy.outputs import require_folder
from deploy.torture import drain, judge, verdict
from deploy.torture.faults import Torturer
from deploy.torture.history import History
from deploy.torture.members import wait_ready
from deploy.torture.plan import BROKER, plan, plan_kills
from deploy.torture.stage import Stage
from schemas.errors import UserError
from schemas.task import load

TASKS = Path(__file__).with_name("torture.toml")
HISTORY_FILE, REPORT_FILE = "torture-history.jsonl", "torture-report.json"
READY_S = 300.0
STEP_S = 0.05
SAY_EVERY_S = 15.0
HEAL_S = 150.0
"""Faults under way when the time is up are driven to their end within this."""
PATIENCE_S = 60.0
REPLAY_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Torture:
    """What to do."""

    minutes: float
    seed: int
    decisions: int
    brokers: int
    every_s: tuple[float, float]
    """Shortest and longest time between two faults."""
    out: Path
    """Folder of history and report."""
    kills: int
    """0: every kind of fault. Else kills alone, until each component was killed so often."""
    components: tuple[str, ...]
    """What `kills` kills, of `plan.COMPONENTS`."""
    folder: Path | None
    """Where logs and state stay; None: a temporary folder, removed when everything held."""


def run(torture: Torture, say: Callable[[str], None]) -> dict[str, Any]:
    """Torture and judge; the report. Raises `UserError` when it could not even begin."""
    require_folder(torture.out, "the folder of history and report", "--out")
    folder = torture.folder or Path(tempfile.mkdtemp(prefix="headrace-torture-"))
    require_folder(folder, "the folder of state and logs", "--folder")
    history = History(torture.out / HISTORY_FILE, say)
    try:
        reported = _run(torture, folder, history, say)
    finally:
        history.close()
    (torture.out / REPORT_FILE).write_text(json.dumps(reported, indent=1) + "\n")
    if reported["verdict"] == "held" and torture.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        say(f"logs of the processes: {folder}")
    return reported


def _run(torture: Torture, folder: Path, history: History, say: Callable[[str], None]) -> dict[str, Any]:
    project = load(TASKS)
    say("preparing Kafka's Java for fast starts (half a minute, the first time)")
    broker_training.prepare()
    say(f"starting {torture.brokers} broker(s) and the processes")
    minutes_of_disk = 0.0 if torture.kills else torture.minutes
    with Stage.open(folder, project, torture.brokers, history, minutes_of_disk) as stage:
        late = wait_ready(list(stage.members.values()), READY_S)
        if late:
            raise UserError(f"{', '.join(late)} did not get ready within {READY_S:.0f} s", f"see the logs in {folder}")
        if stage.no_disk:
            say(f"no disk is filled: {stage.no_disk}")
        shop_report = folder / "shop.json"
        shop = _open_shop(torture, stage, folder)
        history.open_shop()
        seconds = 60 * torture.minutes
        disks = [name for name in stage.disks if torture.brokers == 1 or not name.startswith(BROKER)]
        if torture.kills:
            planned = plan_kills(torture.seed, seconds, torture.every_s, torture.brokers, torture.components)
        else:
            planned = plan(torture.seed, seconds, torture.every_s, torture.brokers, disks)
        _break(Torturer(stage, planned, torture.kills), shop, seconds, say)
        say("healed; waiting for the shop to close")
        if not processes.wait_until(lambda: shop.poll() is not None, 2 * PATIENCE_S + 60, 0.2):
            shop.terminate()
            shop.wait(10)
        if not stage.broker_is_well():
            raise UserError("a broker ended by itself", f"see why in {folder}/broker/broker.log")
        say("waiting for every reader to reach the end of its log")
        drained = drain.drain(stage, verdict.LAG_S_MAX * 2)
        codes = stage.end_members()
        say("auditing the log, replaying the learner")
        log = judge.read(stage.settings)
        evidence = verdict.Evidence(
            history=history,
            shop=json.loads(shop_report.read_text()),
            log=log,
            findings=judge.judge(log, project),
            audit=audit(stage.settings),
            drained=drained,
            replayed=_replay(stage, drained.version, folder),
            codes=codes,
            window_s=max(task.reward.window_ms for task in project.tasks) / 1000,
        )
        parameters = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(torture).items()}
        parameters["memory_bytes_max"] = {name: member.rss_bytes_max for name, member in stage.members.items()}
        parameters["no_disk"] = stage.no_disk
        return verdict.report(evidence, parameters)


def _open_shop(torture: Torture, stage: Stage, folder: Path) -> subprocess.Popen[bytes]:
    tasks = stage.project.tasks
    plan_ = {
        "bootstrap": stage.settings.bootstrap,
        "namespace": stage.settings.namespace,
        "seed": torture.seed,
        "decisions": torture.decisions,
        "rate": torture.decisions / (60 * torture.minutes),
        "tasks": {task.name: task.reward.window_ms / 1000 for task in tasks},
        "actions": list(tasks[0].actions),
        "patience_s": PATIENCE_S,
    }
    (folder / "shop-plan.json").write_text(json.dumps(plan_, indent=1))
    with (folder / "shop.log").open("wb") as log:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "deploy.torture.shop",
            folder / "shop-plan.json",
            folder / "shop.json",
        ]
        return processes.spawn(command, log)


def _break(torturer: Torturer, shop: subprocess.Popen[bytes], seconds: float, say: Callable[[str], None]) -> None:
    """Until the time is up and the last fault is healed and over."""
    history, said_s = torturer.history, 0.0
    while history.now_s < seconds or not torturer.is_done:
        torturer.step()
        if history.now_s > seconds + HEAL_S:
            break
        if shop.poll() not in (None, 0):
            raise UserError("the shop ended with an error", "see shop.log")
        if history.now_s - said_s >= SAY_EVERY_S:
            said_s = history.now_s
            hits = [hit for hit in history.hits if not hit.passed_over]
            kills = sum(hit.num_kills for hit in hits)
            say(f"{said_s:.0f} of {seconds:.0f} s: {len(hits)} faults, {kills} kills, {len(history.ends)} restarts")
        time.sleep(STEP_S)
    torturer.stage.proxy.heal_all()


def _replay(stage: Stage, version: int, folder: Path) -> dict[str, Any]:
    """`headrace replay` of the last version from the beginning of the log: a learner to which nothing happened."""
    if not version:
        return {"error": "nothing was ever published"}
    command = [sys.executable, "-m", "deploy", "replay", "--to", str(version), "--from-earliest", "--json"]
    with (folder / "replay.json").open("wb") as out:
        code = processes.spawn(command, out, environment=stage.environment).wait(REPLAY_S)
    said = (folder / "replay.json").read_text()
    try:
        found: dict[str, Any] = json.loads(said[said.index("{") :])
    except ValueError:
        return {"error": said[-400:], "code": code}
    return found
