"""Methods that learn from labelled source rows and unlabelled target rows."""
