"""What a training reads, and what it leaves behind. Values without a source are ours."""
