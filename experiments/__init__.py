import os

# Read once, when torch loads its threads: those that wait shall sleep. Spinning ones, with another job on the same
# cores, make a training step take 30 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torchvision_fallback as torchvision_fallback
