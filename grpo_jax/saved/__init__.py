"""What a run leaves on disk, as it is read: its directory, its saved steps, and arrays of one of them."""
