"""The way of one object: copy aside, verify, publish, flip, free reversibly; in batches, in slices, under a lease."""
