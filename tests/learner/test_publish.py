"""Publishing: whole or not at all, newest first, and again before the chunks expire. Against a topic in memory."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learner import metrics
from learner.namespace import Snapshot
from learner.publish import CHUNK_BYTES, NotDelivered, Publisher, chunks_of
from learner.published import Entry, Published
from learner.uploads import MADE_MAX, Uploads
from schemas import codec, weights
from schemas.outage import Outage
from schemas.records import SnapshotManifest
from schemas.registry import FileRegistry
from schemas.settings import CommonSettings
from schemas.telemetry import Metrics

REGISTRY = FileRegistry()
KEY = Ed25519PrivateKey.generate()


def snapshot(version: int, size: int = 100, mark: bytes = b"x", **environment: str) -> Snapshot:
    payload = mark * size
    draft = SnapshotManifest(
        version=version,
        parent_sha256=b"",
        sha256=hashlib.sha256(payload).digest(),
        size_bytes=size,
        chunk_offsets=(),
        cut_ms=1000 * version,
        trained=(),
        chain_hash=b"c" * 32,
        cut_number=version,
        tasks=(),
        environment=environment,
        rows_learnt={},
        probes=b"",
        channel="main",
    )
    return Snapshot(draft, payload)


class Topics(Publisher):
    """A publisher whose two topics are lists, and whose n-th write fails."""

    def __init__(self, fail: Sequence[int] = (), delay_s: float = 0.0, reupload_s: float = 1000.0) -> None:
        super().__init__(CommonSettings(bootstrap="127.0.0.1:1"), REGISTRY, KEY, metrics.make(), reupload_s, Outage())
        self.chunks: list[tuple[bytes, bytes]] = []
        self.manifests: list[SnapshotManifest] = []
        self.arrived = threading.Event()
        self._fail, self._delay_s, self._writes = set(fail), delay_s, 0

    @property
    def counted(self) -> Metrics:
        return self._metrics

    def _deliver(self, name: str, keys: Sequence[bytes], values: Sequence[bytes]) -> list[int]:
        self._writes += 1
        time.sleep(self._delay_s)
        if self._writes in self._fail:
            raise NotDelivered(f"write {self._writes} was told to fail")
        if name.endswith("snapshot-chunks"):
            self.chunks += list(zip(keys, values, strict=True))
            return list(range(len(self.chunks) - len(keys), len(self.chunks)))
        manifest = codec.decode(values[0], REGISTRY, expect=SnapshotManifest)
        assert isinstance(manifest, SnapshotManifest)
        self.manifests.append(manifest)
        self.arrived.set()
        return [len(self.manifests) - 1]


def whole(topics: Topics, manifest: SnapshotManifest) -> bool:
    pieces = [topics.chunks[offset][1] for offset in manifest.chunk_offsets]
    return hashlib.sha256(b"".join(pieces)).digest() == manifest.sha256 and weights.verify(manifest, KEY.public_key())


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_chunks_put_together_are_the_payload(size: int) -> None:
    payload = bytes(size)
    pieces = chunks_of(payload)
    assert b"".join(pieces) == payload
    assert all(len(piece) <= CHUNK_BYTES for piece in pieces)
    assert len(pieces) == max(1, -(-size // CHUNK_BYTES))


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_failure_at_any_write_leaves_no_manifest_whose_chunks_are_missing(failing: int) -> None:
    topics = Topics(fail=[failing])
    topics.start()
    for version in (1, 2):
        topics.submit(snapshot(version, 2 * CHUNK_BYTES + version))
        assert topics.flush(10)
    topics.close()
    assert [manifest.version for manifest in topics.manifests] == [1, 2]
    assert all(whole(topics, manifest) for manifest in topics.manifests)
    assert topics.counted.value("headrace_learner_publish_failures") == 1


def test_newest_overtakes_those_that_wait() -> None:
    topics = Topics(delay_s=0.1)
    topics.start()
    for version in range(1, 8):
        topics.submit(snapshot(version))
        time.sleep(0.01)
    assert topics.flush(10)
    topics.close()
    versions = [manifest.version for manifest in topics.manifests]
    assert versions == sorted(set(versions))
    assert versions[-1] == 7
    assert len(versions) + topics.counted.value("headrace_learner_snapshots_overtaken") == 7


def test_current_version_is_uploaded_again_under_the_same_version_before_its_chunks_expire() -> None:
    topics = Topics(reupload_s=0.3)
    topics.start()
    topics.submit(snapshot(4))
    time.sleep(1.2)
    topics.close()
    assert len(topics.manifests) >= 3
    assert {manifest.version for manifest in topics.manifests} == {4}
    assert len({manifest.chunk_offsets for manifest in topics.manifests}) == len(topics.manifests)
    assert all(whole(topics, manifest) for manifest in topics.manifests)


def test_version_found_in_the_topic_is_kept_alive_from_its_own_age_on() -> None:
    topics = Topics(reupload_s=100.0)
    topics.start()
    topics.adopt(snapshot(4), age_s=99.8)
    assert topics.arrived.wait(5)
    topics.close()
    assert topics.manifests[0].version == 4


class Taker:
    """A publisher that only remembers."""

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.adopted: list[int] = []

    def submit(self, snapshot: Snapshot) -> None:
        self.submitted.append(snapshot.draft.version)

    def adopt(self, snapshot: Snapshot, age_s: float) -> None:
        assert age_s >= 0
        self.adopted.append(snapshot.draft.version)


def published(*versions: int, mark: bytes = b"x", **environment: str) -> Published:
    entries = {v: Entry(snapshot(v, mark=mark).draft.sha256, environment, 0) for v in versions}
    return Published(entries, snapshot(max(versions), mark=mark).draft)


def test_versions_that_stand_in_the_topic_are_not_published_again() -> None:
    taker, counted = Taker(), metrics.make()
    uploads = Uploads(taker, published(2, 4), counted)
    for version in range(1, 7):
        uploads.offer(snapshot(version), is_behind=False)
    assert taker.submitted == [5, 6]
    assert taker.adopted == [4]
    assert counted.value("headrace_learner_equivocations") == 0


def test_other_bytes_in_an_equal_environment_are_equivocation() -> None:
    taker, counted = Taker(), metrics.make()
    Uploads(taker, published(4, mark=b"y", torch="1"), counted).offer(snapshot(4, torch="1"), is_behind=False)
    assert counted.value("headrace_learner_equivocations") == 1
    assert (taker.submitted, taker.adopted) == ([], [])


def test_other_bytes_in_another_environment_are_no_equivocation() -> None:
    taker, counted = Taker(), metrics.make()
    uploads = Uploads(taker, published(4, mark=b"y", torch="1"), counted)
    uploads.offer(snapshot(4, torch="2"), is_behind=False)
    assert counted.value("headrace_learner_equivocations") == 0
    assert taker.submitted == []


def test_in_catch_up_the_newest_is_uploaded_once_the_log_is_read() -> None:
    taker, counted = Taker(), metrics.make()
    uploads = Uploads(taker, Published(), counted)
    for version in range(1, 10):
        uploads.offer(snapshot(version), is_behind=True)
    assert taker.submitted == [1], "the first serves at once, then one every few seconds"
    uploads.settle()
    uploads.settle()
    assert taker.submitted == [1, 9]
    assert counted.value("headrace_learner_snapshots_overtaken") == 7


def test_what_another_learner_publishes_is_compared_whichever_comes_first() -> None:
    taker, counted = Taker(), metrics.make()
    uploads = Uploads(taker, Published(), counted)
    uploads.offer(snapshot(1), is_behind=False)
    uploads.saw(snapshot(1).draft, 0)
    assert counted.value("headrace_learner_equivocations") == 0
    uploads.saw(snapshot(1, mark=b"y", torch="2").draft, 0)
    assert counted.value("headrace_learner_equivocations") == 1, "live, another environment is no excuse"
    uploads.saw(snapshot(3).draft, 0)
    uploads.saw(snapshot(4, mark=b"y", torch="2").draft, 0)
    for version in (2, 3, 4, 5):
        uploads.offer(snapshot(version), is_behind=False)
    assert counted.value("headrace_learner_equivocations") == 2
    assert taker.submitted == [1, 5], "what stands in the topic is not published again"


def test_own_cuts_are_remembered_up_to_a_limit() -> None:
    uploads = Uploads(Taker(), Published(), metrics.make())
    for version in range(1, MADE_MAX + 10):
        uploads.offer(snapshot(version, 1), is_behind=True)
    assert len(uploads._made) == MADE_MAX
