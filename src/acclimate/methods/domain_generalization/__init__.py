"""Methods that learn from several labelled domains for one that is not seen."""
