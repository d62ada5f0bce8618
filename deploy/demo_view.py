"""What the demo shows while it runs: a live screen, or a line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.watch import Figures

LINE_EVERY_S = 5.0
RECENT = 500
CURVE_POINTS = 60
_BARS = " ▁▂▃▄▅▆▇█"


def curve(rewards: Sequence[float], points: int = CURVE_POINTS) -> str:
    """The reward so far as a row of blocks, one per equal share of the rows; full height is the highest share.

    >>> curve([0.0, 0.0, 1.0, 1.0], points=2)
    ' █'
    """
    if not rewards:
        return ""
    size = max(1, -(-len(rewards) // points))
    means = [sum(rewards[at : at + size]) / len(rewards[at : at + size]) for at in range(0, len(rewards), size)]
    top = max(*means, 1e-9) if len(means) > 1 else max(means[0], 1e-9)
    return "".join(_BARS[round(mean / top * (len(_BARS) - 1))] for mean in means)


class View:
    """Shows `figures`; `headless` prints lines instead of drawing."""

    def __init__(self, figures: Figures, uniform: float, best_constant: float, headless: bool) -> None:
        self._figures, self._uniform, self._best = figures, uniform, best_constant
        self._headless = headless
        self._console = Console(stderr=False)
        self._live: Live | None = None
        self._started = time.monotonic()
        self._line_due = 0.0
        self.status = "starting"
        """What is going on, in a few words."""

    def shown(self) -> AbstractContextManager[Any]:
        """While inside, the screen is drawn."""
        if self._headless:
            return nullcontext()
        self._live = Live(self._screen(), console=self._console, refresh_per_second=4, transient=False)
        return self._live

    def say(self, text: str) -> None:
        """One step of the demo."""
        self.status = text
        if self._headless:
            print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)
            self._line_due = time.monotonic() + LINE_EVERY_S
        self.update()

    def update(self) -> None:
        """Show the figures as they are now."""
        if self._live is not None:
            self._live.update(self._screen())
        elif self._headless and self._figures.num_decisions and time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + LINE_EVERY_S
            print(f"{time.monotonic() - self._started:6.1f} s  {self._line()}", flush=True)

    def _line(self) -> str:
        figures = self._figures
        reward = _number(figures.reward_of_last(RECENT))
        return (
            f"{figures.num_decisions} decisions, {figures.decisions_per_s(time.time()):.0f}/s, "
            f"{figures.num_transitions} transitions, reward of the last {RECENT} {reward} "
            f"(uniform {self._uniform:.3f}, best constant {self._best:.3f}), snapshot {figures.serving_version}, "
            f"latency p50 {_number(figures.latency_ms(0.5), 1)} ms p99 {_number(figures.latency_ms(0.99), 1)} ms"
        )

    def _screen(self) -> Panel:
        figures = self._figures
        table = Table.grid(padding=(0, 3))
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="dim")
        now = time.time()
        recent = _number(figures.reward_of_last(RECENT))
        table.add_row("decisions", f"{figures.num_decisions}", f"{figures.decisions_per_s(now):.0f}/s")
        table.add_row("transitions", f"{figures.num_transitions}", "decisions whose reward is known")
        table.add_row(
            f"reward of the last {RECENT}", recent, f"uniform {self._uniform:.3f}, best constant route {self._best:.3f}"
        )
        table.add_row("snapshot", f"{figures.serving_version}", f"published {figures.published_version}")
        latency = f"{_number(figures.latency_ms(0.5), 1)} ms"
        table.add_row("latency p50", latency, f"p99 {_number(figures.latency_ms(0.99), 1)} ms, log to log")
        decisions, outcomes = figures.buckets()
        table.add_row("decisions by bucket", "", _listed(decisions))
        table.add_row("outcomes by bucket", "", _listed(outcomes))
        table.add_row("dead letters", f"{figures.dead_letters.total()}", _listed(dict(figures.dead_letters)))
        drawn = Text(curve(figures.rewards), style="green")
        elapsed = f"{time.monotonic() - self._started:.0f} s"
        return Panel(
            Group(table, Text(), drawn),
            title="headrace: 77 support routes, learnt from outcomes",
            subtitle=f"{self.status} · {elapsed}",
        )


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _listed(counts: dict[str, int]) -> str:
    return "  ".join(f"{name} {count}" for name, count in counts.items() if count) or "–"
