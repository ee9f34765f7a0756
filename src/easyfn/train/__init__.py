"""Training state and the step."""
