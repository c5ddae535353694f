"""Redis, where the truth lives: keys, scripts and typed access, one idea per file.

Every transition is a compare-and-set in Lua (``lua/*.lua``, one file each) that takes its time from Redis.
"""
