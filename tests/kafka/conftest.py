"""One real broker per test session, a namespace of topics per test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from deploy import broker as local_broker
from deploy import processes
from deploy.torture.kafka_proxy import Proxy


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a broker of our own on a free port. It dies with the session, whatever happens to us."""
    folder = tmp_path_factory.mktemp("broker")
    running = local_broker.start(folder, port=0, tied=True)
    try:
        yield running.bootstrap
    finally:
        local_broker.stop(folder)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A broker of its own for a file of tests, which clients reach only through the proxy."""
    folder = tmp_path_factory.mktemp("proxied")
    (port,) = processes.free_ports(1)
    running = local_broker.start(folder, port=0, tied=True, advertised=[port])
    try:
        with Proxy([("127.0.0.1", node.port) for node in running.nodes], [port]) as proxy:
            yield proxy
    finally:
        local_broker.stop(folder)


@pytest.fixture
def namespace() -> str:
    """A name that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def create_topics(broker: str, namespace: str) -> Callable[..., None]:
    """``create_topics(partitions=4)`` makes every topic of the namespace, as `headrace topics apply` does."""
    from deploy.topics import create
    from schemas.settings import CommonSettings

    def make(partitions: int = 4) -> None:
        create(CommonSettings(bootstrap=broker, namespace=namespace), partitions=partitions)

    return make
