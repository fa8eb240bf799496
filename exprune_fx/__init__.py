"""Find which numbers in a PyTorch model are interchangeable, and use that to compute less."""
