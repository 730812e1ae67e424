"""The training run: state, step, and what builds and drives them."""
