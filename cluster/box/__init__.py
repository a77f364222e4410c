"""A cluster on one machine: an S3 store, an MLflow server with login, a Ray head and two worker nodes.

Its parts are also what the tests start. `python -m cluster.box` runs it, from the repository's folder.
"""
