"""Two-stream networks (PyTorch modules): RGB and flow tensors -> class logits."""
