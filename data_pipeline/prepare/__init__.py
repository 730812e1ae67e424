"""Offline jobs: photographs to records."""
