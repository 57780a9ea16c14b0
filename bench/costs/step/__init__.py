"""What a training step takes: its time, its parts', and its memory."""
