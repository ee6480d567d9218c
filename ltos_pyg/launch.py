"""The variables that torchrun sets for each process, read without loading PyTorch."""

from __future__ import annotations

import os


def under_torchrun() -> bool:
    """Whether torchrun started this process together with others."""
    return 'TORCHELASTIC_RUN_ID' in os.environ and int(os.environ.get('WORLD_SIZE', 1)) > 1


def launched_rank() -> int:
    """The rank of this process among those that torchrun started; 0 if torchrun did not start it."""
    return int(os.environ['RANK']) if under_torchrun() else 0


def local_rank() -> int:
    """The number of this process among those on this machine."""
    return int(os.environ.get('LOCAL_RANK', 0))
