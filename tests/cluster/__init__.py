"""A real Kubernetes on one machine, without Docker: a control plane and three nodes.

Every machine of the cluster is a network, a mount and a cgroup namespace with its own
kubelet, containerd and kube-proxy. `python -m cluster` has the commands that the Makefile
calls; `conftest.py` has the fixture that tests build on. docs/testing.md tells the rest.
"""
