"""What Kubernetes says of pods, nodes and devices, read one object at a time and never copied."""
