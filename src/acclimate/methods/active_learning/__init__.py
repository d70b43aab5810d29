"""Methods that choose what to label next."""
