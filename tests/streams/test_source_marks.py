"""A source topic that was deleted and made again: told by what the join has read of the old one."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka import KafkaError, KafkaException
from faust.types import TP

from streams import source_marks
from streams.health import Health
from streams.metrics import worker_metrics
from streams.source_marks import Marks, SourceWatch

ORDERS = TP("shop.orders", 1)


class Watch(SourceWatch):
    """With the marks that it will read, or the errors on the way to them."""

    def __init__(self, *answers: Marks | KafkaException) -> None:
        self.answers, self.health = list(answers), Health(60.0)
        self.health.wait_for("start", None)
        super().__init__(self._next, worker_metrics(), self.health)

    def _next(self) -> Marks:
        answer = self.answers.pop(0)
        if isinstance(answer, KafkaException):
            raise answer
        return answer

    def looks(self, *places: tuple[int, int]) -> str:
        """What /ready says after looks at (position, end)."""

        async def run() -> None:
            for place in places:
                self.look(ORDERS, *place)
                if self._asking is not None:
                    await self._asking

        asyncio.run(run())
        return self.health.ready() or ""


def test_a_partition_that_ends_at_or_below_the_joins_mark_is_told_once_and_not_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found by review: Kafka reads it from its start, the join drops all of it as copies, and nothing said so."""
    watch = Watch({("shop.orders", 1): 1999})
    assert "ends at offset 10, but was read up to 1999" in watch.looks((0, 10), (10, 10), (12, 12))
    (said,) = caplog.records
    assert "shop.orders[1] ends at offset 10" in said.getMessage()
    assert "not counted" in said.getMessage()
    watch.keep(set())
    assert watch.health.ready() is None, "it is somebody else's now"


@pytest.mark.parametrize(
    "place", [(2000, 2000), (1500, 2000), (2000, 1990)], ids=["read to its end", "read again", "a late end"]
)
def test_a_partition_that_goes_on_is_ready(place: tuple[int, int]) -> None:
    assert Watch({("shop.orders", 1): 1999}).looks(place) == ""


def test_one_made_again_while_it_is_read_is_noticed_where_it_goes_back() -> None:
    watch = Watch({("shop.orders", 1): 1999}, {("shop.orders", 1): 1999})
    assert watch.looks((2000, 2000), (2100, 2100)) == ""
    assert len(watch.answers) == 1, "the topic is read for it only then"
    assert "was read up to 1999" in watch.looks((3, 3))


def test_marks_that_cannot_be_read_now_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_marks, "RETRY_S", 0.0)
    away = KafkaException(KafkaError(KafkaError._TRANSPORT))
    assert "was read up to" in Watch(away, {("shop.orders", 1): 1999}).looks((0, 10), (0, 10))
