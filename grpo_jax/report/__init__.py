"""Shows a run directory to a person, from its files alone: as one page of HTML, and in a terminal."""
