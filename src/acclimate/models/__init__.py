"""Architectures of our own, and what differs between model families."""
