"""Drawing: the components of a text-to-image model with identity, pure generation, and its compiled form."""
