"""Lists of objects too long for memory: which of them are kept for a plan, and how the others are told apart."""
