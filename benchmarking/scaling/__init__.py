"""Speed and memory of AgileDPO along one quantity at a time: ``python -m benchmarking.scaling``."""
