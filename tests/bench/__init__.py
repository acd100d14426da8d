"""What `make bench` prints and `make accept` checks. pytest never looks at a clock."""
