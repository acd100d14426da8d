"""What went wrong on a node or with a pod, in the order in which it did."""
