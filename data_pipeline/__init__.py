"""From pictures to batches: record schema, sources, transforms, loader, tokenizers, and the embedded world of portraits."""
