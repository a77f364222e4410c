"""What the product measures of itself, beside the ways people have today, on the same clips in the same run."""
