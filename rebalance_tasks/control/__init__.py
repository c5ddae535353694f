"""What a fleet does as a whole: check and plan, start, pause, sweep, clean up, locate. One verb per file."""
