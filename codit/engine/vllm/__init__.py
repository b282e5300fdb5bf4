"""The pair inside vLLM: its model, what asks it, and what each of vLLM's processes is told."""
