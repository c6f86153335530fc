"""Model-based offline reinforcement learning. Read `mbrl/types.py` first."""

__version__ = "0.1.0"
