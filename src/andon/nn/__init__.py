"""What needs torch; nothing outside this folder imports it at module level."""

import os

# Threads that spin while they wait make a step several times slower on a machine that does anything else. Read by
# OpenMP when torch is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
