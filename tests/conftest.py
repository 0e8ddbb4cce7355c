"""What every test shares: the shape checker, few threads, and small runs."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
