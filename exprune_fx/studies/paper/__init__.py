"""What the ExPrune paper (arXiv 2506.02210) reports, made again with its guards and its count, and ours beside it."""
