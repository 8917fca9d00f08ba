"""Many processes: the only package that knows Accelerate's and DeepSpeed's process business."""
