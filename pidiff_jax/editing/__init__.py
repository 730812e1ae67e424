"""What can be done to W+ codes: levels mixed, attributes moved along directions, people interpolated; pure functions."""
