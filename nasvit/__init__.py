"""nasvit: search and prune vision transformers for a latency measured on your device.

Importing the package loads neither torch nor Optuna.
"""

__version__ = "0.1.0"
