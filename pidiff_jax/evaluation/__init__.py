"""Scores of drawn pictures, and their reports."""
