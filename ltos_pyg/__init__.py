"""Learning to Share (LToS) and graph multi-agent reinforcement learning on PyTorch Geometric."""

__version__ = '0.1.0'
