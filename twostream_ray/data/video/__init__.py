"""Video decoding and encoding, sandboxed in child processes that may crash."""
