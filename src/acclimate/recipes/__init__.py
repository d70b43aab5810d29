"""Whole pipelines as YAML."""
