"""A fake Kubernetes API server for unit tests: real sockets, real TLS, real child processes."""
