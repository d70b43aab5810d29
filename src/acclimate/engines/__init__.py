"""Loops, devices, files: what runs methods."""
