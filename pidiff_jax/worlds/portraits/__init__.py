"""The embedded world: drawn portraits with their own base model, W+ space and judges, shipped in the package."""
