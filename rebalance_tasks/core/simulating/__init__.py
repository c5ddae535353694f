"""What a simulation on paper is made of: its fleet, its world, its events, its yardstick; `core.simulation` is the door."""
