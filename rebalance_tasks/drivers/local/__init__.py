"""Directories and disks: the driver, and the ways of many plain small files and of large ones."""
