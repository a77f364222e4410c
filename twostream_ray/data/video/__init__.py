"""Video input and output: files to frames and back, in a process that may die."""
