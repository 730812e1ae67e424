"""Saving and restoring runs, content fingerprints, and strict partial initialisation."""
