"""Experiments of the domain_adaptation room."""
