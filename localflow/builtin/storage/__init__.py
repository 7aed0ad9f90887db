"""What the built-in state stores share."""
