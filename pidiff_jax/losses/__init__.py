"""Losses as pure functions of arrays, one value per example; masks are 1 inside the face."""
