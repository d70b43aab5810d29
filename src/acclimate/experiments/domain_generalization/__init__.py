"""Experiments of the domain_generalization room."""
