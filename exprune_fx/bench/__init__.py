"""The benchmark: dense and staged models beside each other on this machine's clock."""
