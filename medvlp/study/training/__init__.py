"""Training: batches, devices, checkpoints, and the loop that brings them together."""
