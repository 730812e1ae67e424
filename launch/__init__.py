"""Commands. A run's time limit counts from here: `python -m launch.NAME` imports this first, before anything heavy."""

import time

STARTED = time.perf_counter()
