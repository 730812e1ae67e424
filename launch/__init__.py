"""Command-line mains."""
