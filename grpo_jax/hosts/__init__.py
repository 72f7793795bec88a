"""The hosts of a run: how they find each other, check that they run the same, exchange texts, and end together."""
