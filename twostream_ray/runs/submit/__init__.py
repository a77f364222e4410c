"""Jobs on a Ray cluster, by the REST interface of its dashboard (Ray Jobs): submitted, followed, stopped, resumed."""
