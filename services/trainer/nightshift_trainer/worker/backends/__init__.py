"""What a training stands on: one interface, two implementations."""
