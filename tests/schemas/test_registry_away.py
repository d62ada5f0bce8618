"""A schema registry that is away: what it costs, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schemas import codec
from schemas.bounds import BadRecord
from schemas.compatibility import current
from schemas.registry import REST_S, ConfluentRegistry, FileRegistry, RegistryUnavailable, open_for_service
from tests.schemas.http_registry import HttpRegistry
from tests.schemas.messages import decision_block, decision_columns, same


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[HttpRegistry]:
    with HttpRegistry() as server:
        yield server


def failing(registry: ConfluentRegistry, clock: Clock, took_s: float = 0.0) -> list[int]:
    """The ids that the client of `registry` is asked for from now on; it answers none."""
    asked: list[int] = []

    def get_schema(schema_id: int) -> None:
        asked.append(schema_id)
        clock.now_s += took_s
        raise ConnectionRefusedError("nobody there")

    registry.client.get_schema = get_schema
    return asked


def test_a_registry_that_did_not_answer_is_left_alone_for_a_while_whatever_it_is_asked(clock: Clock) -> None:
    registry = ConfluentRegistry("mock://registry", clock_s=clock)
    asked = failing(registry, clock)
    for schema_id in range(1, 51):
        with pytest.raises(RegistryUnavailable, match="did not answer: nobody there"):
            registry.schema_of(schema_id)
    with pytest.raises(RegistryUnavailable):
        registry.id_of("Outcome")
    assert asked == [1]
    clock.now_s += REST_S
    with pytest.raises(RegistryUnavailable):
        registry.schema_of(1)
    assert asked == [1, 1], "what failed is not held against the id"


def test_the_longer_a_registry_kept_us_waiting_the_longer_it_is_left_alone(clock: Clock) -> None:
    registry = ConfluentRegistry("mock://registry", clock_s=clock)
    asked = failing(registry, clock, took_s=4.0)
    began_s = clock.now_s
    while clock.now_s < began_s + 400:
        with pytest.raises(RegistryUnavailable):
            registry.schema_of(7)
        clock.now_s += 0.1
    assert 4.0 * len(asked) <= 0.21 * 400, "who asks stands still for a fifth of the time at most"


def test_what_is_known_is_read_while_the_registry_is_away(clock: Clock) -> None:
    registry = ConfluentRegistry("mock://registry", clock_s=clock)
    block = decision_block(decision_columns(1, 3))
    message = codec.encode(block, registry)
    failing(registry, clock)
    with pytest.raises(RegistryUnavailable):
        registry.schema_of(999)
    assert same(block, codec.decode(message, registry)), "what we registered ourselves need not be fetched"


def test_a_process_that_serves_knows_all_current_schemas_of_ours(server: HttpRegistry) -> None:
    registry = open_for_service(server.url)
    server.stop()
    for name in current():
        assert registry.schema_of(registry.id_of(name)).name == name
    assert not server.asked
    assert isinstance(open_for_service(None), FileRegistry)


def test_a_process_does_not_begin_to_serve_without_its_registry(server: HttpRegistry) -> None:
    server.stop()
    with pytest.raises(RegistryUnavailable, match=r"did not register headrace\.\w+: .*SCHEMA_REGISTRY_URL"):
        open_for_service(server.url)


def test_a_registry_that_is_back_is_asked_again(server: HttpRegistry, clock: Clock) -> None:
    registry = ConfluentRegistry(server.url, clock_s=clock)
    schema_id = server.register({"type": "record", "name": "Order", "fields": []})
    server.stop()
    with pytest.raises(RegistryUnavailable):
        registry.schema_of(schema_id)
    server.start()
    with pytest.raises(RegistryUnavailable):
        registry.schema_of(schema_id)
    assert server.asked[schema_id] == 0
    clock.now_s += REST_S
    assert registry.schema_of(schema_id).name == "Order"


@pytest.mark.parametrize("status", [400, 422])
def test_what_the_registry_says_of_one_id_is_not_held_against_the_others(
    server: HttpRegistry, clock: Clock, status: int
) -> None:
    registry = ConfluentRegistry(server.url, clock_s=clock)
    server.status = status
    for _ in range(2):
        with pytest.raises(BadRecord, match="unknown-schema: schema id 4294967295"):
            registry.schema_of(0xFFFFFFFF)
    assert server.asked[0xFFFFFFFF] == 1
    server.status = 200
    schema_id = server.register({"type": "record", "name": "Order", "fields": []})
    assert registry.schema_of(schema_id).name == "Order"


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_registry_that_answers_with_an_error_of_its_own_is_away(
    server: HttpRegistry, clock: Clock, status: int
) -> None:
    registry = ConfluentRegistry(server.url, clock_s=clock)
    server.status = status
    with pytest.raises(RegistryUnavailable):
        registry.schema_of(5)
    num_asked = server.asked[5]
    with pytest.raises(RegistryUnavailable):
        registry.schema_of(5)
    assert server.asked[5] == num_asked
