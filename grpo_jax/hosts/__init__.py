"""The hosts of a run: how they meet, what they tell each other, and how they end."""
