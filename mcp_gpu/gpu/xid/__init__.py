"""Xids: the errors that NVIDIA's driver writes to the kernel log, and what NVIDIA says of each."""
