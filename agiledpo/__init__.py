"""AgileDPO: populations of preference-tuning agents on one shared base model."""

__version__ = "0.1.0"
