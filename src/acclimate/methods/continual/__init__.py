"""Methods that learn one task after another."""
