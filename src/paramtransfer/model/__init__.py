"""The upstream and downstream architectures."""
