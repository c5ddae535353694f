"""Objects for readers and writers: which copy counts, how it is followed and changed while it moves, folders of all nodes as one."""
