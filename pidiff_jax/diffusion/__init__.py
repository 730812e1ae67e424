"""Diffusion as array maths: noise schedules, what the network predicts, guidance and samplers."""
