"""What is trained: one module per task, each a pure `losses(params, batch, key, train)` with per-example values."""
