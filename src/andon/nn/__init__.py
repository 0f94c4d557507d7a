"""Code that needs torch, for detectors trained by gradient."""

import os

# Busy-waiting threads make a training step several times slower on a machine that also runs other programs. OpenMP
# reads this variable when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
