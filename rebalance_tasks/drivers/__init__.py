"""Drivers: one small protocol between the migration engine and whatever holds objects."""
