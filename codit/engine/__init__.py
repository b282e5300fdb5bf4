"""How the next tokens of many rows are drawn, quickly and alike in every engine."""
