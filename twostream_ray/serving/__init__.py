"""Model serving over HTTP: raw videos in, classes out; an ASGI application in one process, without Ray."""
