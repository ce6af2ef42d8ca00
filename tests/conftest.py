"""One thread: the networks of the tests are so small that more only wait for each other."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
