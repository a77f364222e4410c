"""`benchmark ingest` measures a whole machine and is run by hand; tests/runs/test_ingest.py tests what it times."""
