"""What a run survives: processes killed at any moment, full and read-only disks, files that are not as they were."""
