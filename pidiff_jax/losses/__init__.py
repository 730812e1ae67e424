"""Losses: each returns one value per example."""
