"""Record fields: records ↔ the plain values that an Avro library reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from schemas.bounds import Limits
from schemas.intake import outcome_of, request_of
from schemas.records import (
    ChainPosition,
    DeadLetter,
    Decision,
    DecisionRequest,
    DefinitionPosition,
    Features,
    FeatureValue,
    JournalGap,
    Outcome,
    Progress,
    Record,
    Resume,
    SnapshotManifest,
    SourcePosition,
    TaskRecord,
    TrainedPosition,
    Vector,
)


def _slots(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in type(record).__slots__}


def _branch(value: FeatureValue) -> tuple[str, Any]:
    """The value with its branch of the union named: guessing takes a library longer than writing."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, str):
        return "string", value
    if isinstance(value, Vector):
        return "headrace.Vector", {"values": value.values.tolist()}
    if isinstance(value, list):
        return "array", value
    return "double", float(value)


def _features(features: Features) -> dict[str, tuple[str, Any]]:
    return {name: _branch(value) for name, value in features.items()}


def _request_fields(request: DecisionRequest) -> dict[str, Any]:
    fields = _slots(request)
    fields["context"] = _features(request.context)
    if request.candidates is not None:
        candidates = [
            {"action_id": each.action_id, "features": _features(each.features)} for each in request.candidates
        ]
        fields["candidates"] = ("array", candidates)
    if request.bounds is not None:
        fields["bounds"] = ("headrace.Bounds", {"low": request.bounds[0], "high": request.bounds[1]})
    return fields


def _progress_fields(progress: Progress) -> dict[str, Any]:
    fields = _slots(progress)
    fields["chains"] = [_slots(chain) for chain in progress.chains]
    resume = progress.resume
    definitions = None if resume.definitions is None else [_slots(each) for each in resume.definitions]
    sources = [_slots(source) for source in resume.sources]
    fields["resume"] = _slots(resume) | {"sources": sources, "definitions": definitions}
    fields["gaps"] = [_slots(gap) for gap in progress.gaps]
    return fields


def _manifest_fields(manifest: SnapshotManifest) -> dict[str, Any]:
    fields = _slots(manifest)
    fields["trained"] = [
        _slots(trained) | {"chains": [_slots(chain) for chain in trained.chains]} for trained in manifest.trained
    ]
    return fields


def _chains(items: list[Mapping[str, Any]]) -> tuple[ChainPosition, ...]:
    return tuple(ChainPosition(**item) for item in items)


def _progress_of(fields: Mapping[str, Any], limits: Limits) -> Progress:
    resume = fields["resume"]
    sources = tuple(SourcePosition(**source) for source in resume["sources"])
    listed = resume["definitions"]
    definitions = None if listed is None else tuple(DefinitionPosition(**each) for each in listed)
    start = Resume(**{**resume, "sources": sources, "definitions": definitions})
    gaps = tuple(JournalGap(**gap) for gap in fields["gaps"])
    return Progress(**{**fields, "chains": _chains(fields["chains"]), "resume": start, "gaps": gaps})


def _manifest_of(fields: Mapping[str, Any], limits: Limits) -> SnapshotManifest:
    trained = tuple(TrainedPosition(**{**item, "chains": _chains(item["chains"])}) for item in fields["trained"])
    chunk_offsets, tasks = tuple(fields["chunk_offsets"]), tuple(fields["tasks"])
    return SnapshotManifest(**{**fields, "trained": trained, "chunk_offsets": chunk_offsets, "tasks": tasks})


_TO_FIELDS: Mapping[type, Callable[[Any], dict[str, Any]]] = {
    DecisionRequest: _request_fields,
    Progress: _progress_fields,
    SnapshotManifest: _manifest_fields,
}
_FROM_FIELDS: Mapping[str, Callable[[Mapping[str, Any], Limits], Record]] = {
    "DecisionRequest": request_of,
    "Outcome": outcome_of,
    "Decision": lambda fields, limits: Decision(**fields),
    "TaskRecord": lambda fields, limits: TaskRecord(**fields),
    "DeadLetter": lambda fields, limits: DeadLetter(**fields),
    "Progress": _progress_of,
    "SnapshotManifest": _manifest_of,
}
RECORD_TYPES: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (DecisionRequest, Decision, Outcome, TaskRecord, Progress, SnapshotManifest, DeadLetter)
}


def fields_of_record(record: Record) -> dict[str, Any]:
    """Plain values of a record, by field name."""
    return _TO_FIELDS.get(type(record), _slots)(record)


def record_of(name: str, fields: Mapping[str, Any], limits: Limits) -> Record:
    """The record of schema `name` from plain values; raises BadRecord for what users can get wrong."""
    return _FROM_FIELDS[name](fields, limits)
