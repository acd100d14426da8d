"""What is wrong with a node's GPUs, as NVIDIA's own people would conclude from the readings."""
