"""Experiments of the adapters room."""
