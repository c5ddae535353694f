"""The metrics of a fleet: their table, one look at Redis, and the text; `control.metrics` is the door."""
