"""One command a file: its options, and the order of its steps. The work is done elsewhere."""
