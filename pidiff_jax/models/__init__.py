"""Linen modules: pure functions of (params, arrays)."""
