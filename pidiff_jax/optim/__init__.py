"""Ordered path rules -> parameter groups -> one optimizer; schedules; moving averages."""
