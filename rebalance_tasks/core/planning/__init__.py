"""The steps of a plan, each in a file of its own; `core.planner` is the door."""
