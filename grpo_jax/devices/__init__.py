"""Devices: the mesh, where arrays live on it, and settings of the process. Knows nothing of GRPO."""
