"""Programs that start or call this one, and the files in which they are told to."""
