"""What a training reads, and what it leaves behind."""
