"""Model serving over HTTP: an ASGI (FastAPI) application in one process that classifies raw videos, without Ray."""
