"""Everything that occupies a cluster, one verb a file; importing this package loads nothing heavy."""
