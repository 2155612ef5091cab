"""What every Nightshift service needs once."""
