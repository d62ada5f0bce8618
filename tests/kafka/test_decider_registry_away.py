"""A decider whose schema registry goes away: a message that needs it harms only itself."""

from __future__ import annotations

import copy
import io
import itertools
from pathlib import Path

import fastavro

from schemas.compatibility import current
from tests.kafka.decider_process import Shop, decider, journaled, project, route
from tests.kafka.workers import read_all, set_up, until
from tests.schemas.http_registry import HttpRegistry

NUM_UNSEEN = 20


def test_requests_of_unseen_schemas_are_refused_and_the_others_answered_while_the_registry_is_away(
    broker: str, namespace: str, tmp_path: Path
) -> None:
    settings = set_up(broker, project(namespace))
    schema = copy.deepcopy(current()["DecisionRequest"].schema)
    schema["fields"].append({"name": "weather", "type": "string", "default": ""})
    with HttpRegistry() as registry, decider(settings, tmp_path, schema_registry_url=registry.url) as process:
        shop = Shop(settings)
        shop.send(route(0))
        shop.collect(1)
        registry.stop()
        for number in range(NUM_UNSEEN):
            shop.send(b"\0" + (10_000 + number).to_bytes(4, "big") + b"\x10rest", f"subject-{number}")
        for number in range(1, 8):
            shop.send(route(number))
        shop.collect(8, 20.0)
        letters = [letter for *_, letter in read_all(settings, "dead-letters", NUM_UNSEEN)]
        assert len(letters) == NUM_UNSEEN
        assert {letter.reason for letter in letters} == {"unknown-schema"}
        assert all("did not answer" in letter.detail and registry.url in letter.detail for letter in letters)
        registry.start()
        schema_id = registry.register(schema)
        number = itertools.count(100)

        def is_answered() -> bool:
            """A shop with a schema of its own sends again until it is heard."""
            request = {**route(next(number)), "weather": "wet"}
            body = io.BytesIO()
            fastavro.schemaless_writer(body, fastavro.parse_schema(schema, named_schemas={}), request)
            num_before = len(shop.answers)
            shop.send(b"\0" + schema_id.to_bytes(4, "big") + body.getvalue(), str(request["subject"]))
            shop.poll(1.0)
            return len(shop.answers) > num_before

        until(is_answered, 60, process.said)
        assert process.stop()[0] == 0
        shop.close()
    decided = {block.decision_ids[row] for _, block, row in journaled(settings)}
    assert {f"r-{number}" for number in range(8)} < decided
    assert any(int(each.removeprefix("r-")) >= 100 for each in decided), "the registry is asked again when it is back"
