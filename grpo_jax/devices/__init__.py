"""Devices: the mesh, shardings, placement, programs, memory, process settings. Nothing here knows of GRPO."""
