"""`benchmark train` measures a whole machine and is run by hand; tests/training/test_step.py tests what it times."""
