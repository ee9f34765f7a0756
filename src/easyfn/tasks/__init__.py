"""What models are for: heads, losses, the words of tasks."""
