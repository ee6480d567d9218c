"""Graph data: snapshots, batches built without a loop over graphs, rollouts, and the replay of ragged transitions."""

from ltos_pyg.data.replay import GraphReplay
from ltos_pyg.data.rollout import Rollout
from ltos_pyg.data.snapshot import Snapshot, batch_snapshots, batch_to, repeat_batch
from ltos_pyg.data.transition import Transition

__all__ = ['GraphReplay', 'Rollout', 'Snapshot', 'Transition', 'batch_snapshots', 'batch_to', 'repeat_batch']
