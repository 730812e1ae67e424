"""Scores of identity, prompt, localisation and diversity with intervals; sample pictures; reports."""
