"""Reads an offline W&B run back from its own `.wandb` file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEAD = 32768, 7


@dataclass
class WandbRun:
    """What a run sent: `history` row by row, and `config` and `summary` as they were at the end."""

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def values(self, key: str) -> list[Any]:
        """What was logged under the key, in order."""
        return [row[key] for row in self.history if key in row]


def read_wandb_file(path: Path, seconds: float = 20.0) -> WandbRun:
    """Reads a run that was finished; the end of its file is written a moment after `finish()` returns."""
    until = time.monotonic() + seconds
    while True:
        records = [Record.FromString(data) for data in _records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return _run(records)
        if time.monotonic() > until:
            raise TimeoutError(f"{path} has no end after {seconds} s: was the run finished?")
        time.sleep(0.05)


def _run(records: list[Record]) -> WandbRun:
    run = WandbRun()
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary.update(_items(record.summary.update))
        elif kind in ("config", "run"):
            run.config.update(_items((record.config if kind == "config" else record.run.config).update))
    return run


def _items(items: Any) -> dict[str, Any]:
    """The values under their keys; the parts of a picture or table come one by one and are put together."""
    tree: dict[str, Any] = {}
    for item in items:
        *branches, leaf = item.nested_key or [item.key]
        place = tree
        for branch in branches:
            place = place.setdefault(branch, {})
        place[leaf] = json.loads(item.value_json)
    return tree


def _records(raw: bytes) -> Iterator[bytes]:
    """The records of a LevelDB-style log: each in one piece (kind 1), or first (2), middle (3) and last (4)."""
    assert raw[:4] == b":W&B"
    assert struct.unpack("<H", raw[4:6]) == (0xBEE1,)
    at, parts = _HEAD, b""
    while at < len(raw):
        if len(raw) - at < _HEAD:
            return
        if _BLOCK - at % _BLOCK < _HEAD:  # too little left in the block for a header: padding
            at += _BLOCK - at % _BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", raw[at : at + _HEAD])
        data = raw[at + _HEAD : at + _HEAD + length]
        if len(data) < length:  # still being written
            return
        assert crc32(bytes([kind]) + data) == checksum
        at += _HEAD + length
        parts += data
        if kind in (1, 4):
            yield parts
            parts = b""
