"""Experiments: configs only, each file a `get_config`; they build no objects."""
