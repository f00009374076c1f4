"""What xentrace recorded: its binary records, who ran when, and a picture of that. Knows no host."""
