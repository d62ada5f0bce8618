"""What a process needs of the cluster before it starts: a broker that answers, and its topics.

Which topics are missing, and the words for it, are `schemas.missing_topics`'; waiting for the broker is
`schemas.broker_wait`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from schemas.broker_wait import find_topics
from schemas.missing_topics import missing_of, topics_missing
from schemas.settings import CommonSettings


def require_topics(settings: CommonSettings, names: Iterable[str]) -> dict[str, int]:
    """Number of partitions of each topic of `names`.

    Waits for a broker up to `settings.broker_wait_s`. Raises UserError with the remedy when none answers or a topic is
    missing.
    """
    names, found = list(names), _all_topics(settings)
    missing = missing_of(names, found)
    if missing:
        raise topics_missing(settings, missing)
    return {name: len(found[name].partitions) for name in names}


def missing_topics(settings: CommonSettings, names: Iterable[str]) -> list[str]:
    """Those of `names` that the cluster does not have. Waits and raises as `require_topics` where none answers."""
    return missing_of(names, _all_topics(settings))


def _all_topics(settings: CommonSettings) -> dict[str, Any]:
    asked = find_topics(settings)
    assert asked is not None, "nobody stops it"
    return asked[1]
