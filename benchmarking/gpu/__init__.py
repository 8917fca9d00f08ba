"""DPO on random weights of real shapes, for a GPU machine without network: ``python -m benchmarking.gpu``."""
