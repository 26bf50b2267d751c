"""Import this first: idle threads of OpenBLAS and OpenMP sleep at once.

By default they spin for up to some hundred milliseconds after their work, on the cores that the other side of a
comparison is timed on next.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2^4 cycles, the least that it takes
