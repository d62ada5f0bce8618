"""Codec: messages ↔ records and blocks. Being filled in; signatures are final."""

from __future__ import annotations

from typing import Any

from schemas.bounds import LIMITS, BadRecord, Limits, Payload
from schemas.records import DecisionRequest, Outcome

__all__ = ["BadRecord", "decode", "decode_foreign", "decode_outcome", "decode_request", "encode"]


def encode(record: Any, registry: Any) -> bytes:
    """Confluent framing 0x00 + u32be schema id + Avro body, by the type of the record or block."""
    raise NotImplementedError


def decode(payload: Payload, registry: Any, limits: Limits = LIMITS, expect: Any = None) -> Any:
    """The record or block; raises BadRecord(reason, detail)."""
    raise NotImplementedError


def decode_request(payload: Payload, registry: Any, limits: Limits = LIMITS) -> DecisionRequest:
    """A DecisionRequest in Avro or JSON."""
    raise NotImplementedError


def decode_outcome(payload: Payload, registry: Any, limits: Limits = LIMITS) -> Outcome:
    """An Outcome in Avro or JSON."""
    raise NotImplementedError


def decode_foreign(payload: Payload, registry: Any, limits: Limits = LIMITS) -> Any:
    """A foreign message (Avro of any schema in the registry, or JSON) as plain Python values."""
    raise NotImplementedError
