"""Partition, sampling and augmentation: independent of where the data came from; no disk."""
