"""Identifiers as distinct types, so that a node id never passes for a job id."""

from __future__ import annotations

from typing import NewType

NodeId = NewType("NodeId", str)
JobId = NewType("JobId", str)
PlanId = NewType("PlanId", str)
GroupId = NewType("GroupId", str)
MoveId = NewType("MoveId", str)
ObjectKey = NewType("ObjectKey", str)
FleetName = NewType("FleetName", str)
