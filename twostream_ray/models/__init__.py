"""Two-stream networks: tensors in, class scores out."""
