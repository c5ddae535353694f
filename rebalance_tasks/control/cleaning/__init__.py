"""What cleanup looks for on the nodes: orphans, strays and what Redis forgot; `control.cleanup` is the door."""
