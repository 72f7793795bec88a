"""Devices: the mesh, shardings, placement of prompts and groups, programs, memory, process settings."""
