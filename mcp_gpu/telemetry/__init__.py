"""What a process tells of its own work: calls, metrics, traces, the audit log."""
