"""What tools answer, at addresses that a client may attach, complete and subscribe to."""
