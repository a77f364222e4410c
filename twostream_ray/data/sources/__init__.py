"""Dataset catalogs: which labelled clips there are, by folders, lists and tables; synthetic videos."""
