"""Topics that are missing, and the error: whoever meets it may have named another namespace than was meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas.errors import UserError
from schemas.settings import CommonSettings


def topics_missing(settings: CommonSettings, names: Sequence[str]) -> UserError:
    """What to raise when the cluster lacks `names`, topics of the namespace.

    >>> topics_missing(CommonSettings(bootstrap="b:1", namespace="shop"), ["shop.tasks", "shop.journal"]).message
    "topics shop.tasks, shop.journal of the namespace 'shop' are missing at b:1"
    """
    which = f"topic {names[0]}" if len(names) == 1 else f"topics {', '.join(names)}"
    return UserError(
        f"{which} of the namespace {settings.namespace!r} {'is' if len(names) == 1 else 'are'} missing at "
        f"{settings.bootstrap}",
        "if another namespace is meant, name it with --namespace or HEADRACE_NAMESPACE; else create the topics with "
        f"`headrace topics apply`, of the headrace.toml that says name = {settings.namespace!r}",
    )


def missing_of(names: Iterable[str], found: Mapping[str, Any]) -> list[str]:
    """Those of `names` that are not in a cluster's metadata of topics (`schemas.broker_wait.find_topics`)."""
    return [name for name in names if name not in found or found[name].error is not None]
