"""How the nodes are looked at: by tasks, in parts, in memory that is bounded; `control.survey` is the door."""
