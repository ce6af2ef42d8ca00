"""One thread: the networks of the tests are so small that more only wait for each other."""

import os
import sys

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start too
torch.set_num_threads(1)
# Processes that tests start see this source tree and these tests as this process does.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
