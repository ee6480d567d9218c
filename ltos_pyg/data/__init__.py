"""Graph data: snapshots, batches built without a loop over graphs, rollouts, and the replay of ragged transitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltos_pyg.data.rollout import Rollout
from ltos_pyg.data.snapshot import Snapshot, batch_snapshots

if TYPE_CHECKING:
    from ltos_pyg.data.replay import GraphReplay, Transition

__all__ = ['GraphReplay', 'Rollout', 'Snapshot', 'Transition', 'batch_snapshots']


def __getattr__(name: str) -> Any:
    """Loads the replay when it is first asked for: it needs Numba, and a snapshot does not."""
    if name in ('GraphReplay', 'Transition'):
        from ltos_pyg.data import replay

        return getattr(replay, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
