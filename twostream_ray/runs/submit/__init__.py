"""Ray Jobs client: submit, follow, stop and resume jobs through the REST interface of the Ray dashboard."""
