"""Training of the warm-up and of the final model."""
