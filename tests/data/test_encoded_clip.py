"""`EncodedClip` is a record: tests/data/loading/test_rows.py and tests/data/video/test_isolation.py follow it."""
