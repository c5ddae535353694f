"""Which nodes should hold an object: the two rules, their kernels and the integers that decide; `core.crush` is the door."""
