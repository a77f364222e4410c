"""The networks of the two-stream family: tensors in, class scores out."""
