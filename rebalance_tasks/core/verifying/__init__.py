"""The rules that a plan is held to, apart from everything that makes plans; `core.verify` is the door."""
