"""A device mesh from named axis sizes, and where parameters and batches lie on it."""
