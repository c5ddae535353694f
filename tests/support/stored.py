"""What releases have written into Redis, kind by kind and form by form; nothing here is ever changed, only added to."""

from __future__ import annotations

import json
import zlib
from typing import Final

_MOVES: Final = [
    {
        "object_key": "photos/cat.jpg",
        "source_node": "disk1",
        "target_node": "disk2",
        "size_bytes": 1000,
        "priority": 5,
        "gravity": 0.1,
        "cost": "0.02",
        "reason": "levels disk1",
    }
]
_META: Final = {
    "plan_id": "plan-1",
    "fleet": "test",
    "epoch": 3,
    "estimated_duration_seconds": 1.0,
    "estimated_egress_bytes": 1000,
    "estimated_cost": "0.02",
    "imbalance_before": 0.5,
    "imbalance_after": 0.1,
    "limits_reached": [],
    "not_moved": {"balanced": 4},
    "created_utc": "2026-11-24T02:00:00Z",
}

#: Form 1 of a plan, as a hash: without a stamp, as the first release wrote it, and with one.
PLAN_1: Final = {
    "meta": json.dumps(_META),
    "chunks": "1",
    "moves:0": zlib.compress(json.dumps(_MOVES).encode()),
}
PLAN_1_STAMPED: Final = {**PLAN_1, "meta": json.dumps({"v": 1, **_META})}
#: Form 2, with ``cannot`` and ``undo_of``.
PLAN_2: Final = {**PLAN_1, "meta": json.dumps({"v": 2, **_META, "cannot": [], "undo_of": ""})}
#: Form 3: moves as columns.
PLAN_3: Final = {
    **PLAN_2,
    "meta": json.dumps({"v": 3, **_META, "cannot": [], "undo_of": ""}),
    "moves:0": zlib.compress(
        b'[["photos/cat.jpg"],[1000],[["disk1"],[]],[["disk2"],[]],[[5],[]],[[0.1],[]],[["0.02"],[]],[["levels disk1"],[]]]'
    ),
}

_FINGERPRINT: Final = '{"size_bytes": 1000, "mtime_ns": 1, "inode": 3, "device": 2, "etag": ""}'
#: Form 1 of the records that stand alone, without and with a stamp.
RECORDS_1: Final[dict[str, tuple[str, ...]]] = {
    "trash": (
        f'{{"node":"disk1","key":"photos/cat.jpg","size":1000,"fingerprint":{_FINGERPRINT}}}',
        f'{{"v":1,"node":"disk1","key":"photos/cat.jpg","size":1000,"fingerprint":{_FINGERPRINT}}}',
    ),
    "undo": (
        f'{{"source":"disk1","target":"disk2","key":"photos/cat.jpg","fingerprint":{_FINGERPRINT}}}',
        f'{{"v":1,"source":"disk1","target":"disk2","key":"photos/cat.jpg","fingerprint":{_FINGERPRINT}}}',
    ),
    "snapshot": (
        '{"at":"2026-11-27T02:00:00Z","verdict":"skipped","reason":"paused: operator"}',
        '{"v":1,"at":"2026-11-27T02:00:00Z","verdict":"planned","reason":"","plan_id":"p","objects":1,"not_moved":{"pinned":1}}',
    ),
    "check": (
        '{"at":"2026-11-24T02:00:00Z","verdict":"skipped","reason":"under_threshold","plan_id":null,"imbalance":0.01,"forced":false}',
        '{"v":1,"at":"2026-11-24T02:00:00Z","verdict":"planned","reason":"","plan_id":"plan-1","imbalance":0.5,"forced":true}',
    ),
}
