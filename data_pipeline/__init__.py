"""Records, sources and loaders: from photographs to batches."""
