"""What lies in a run's folder: training makes it, `open_run` opens it, and results are written from it."""
