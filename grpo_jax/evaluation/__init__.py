"""Evaluation: answers to prompts that nothing is learned from, what they earn, and how sure the numbers are."""
