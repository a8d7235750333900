"""Today's numbers, kept in tests/data/v1, so that moving code about can be proved to change none of them."""

import os

# Before anything imports torch or numpy, which read these once: threads round otherwise.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")
