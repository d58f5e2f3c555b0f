"""What the samplers and the batches run on: calls, memory, places, checkpoints."""
