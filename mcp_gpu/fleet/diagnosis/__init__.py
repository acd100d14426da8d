"""From what every path has shown, and what the cluster says of its network, to a named cause."""
