"""Makes the modules of this folder importable from the folders below it, and keeps PyTorch to one thread."""

import torch

torch.set_num_threads(1)  # the graphs are small: threads would only wait for each other
