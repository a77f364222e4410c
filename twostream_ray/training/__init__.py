"""What is minimised, how one step is made, and what is kept of it."""
