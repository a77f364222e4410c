"""`benchmark predict` measures a whole machine, by hand; runs/score/test_predict_many.py has what it times."""
