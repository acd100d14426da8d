"""What `/metrics` shows: read from the plain figures that the parts keep, at each scrape.

Nothing here is imported before the first one. docs/metrics.md lists every name.
"""
