"""Dataset catalogs: labelled clips from folder layouts, split lists and tables; a synthetic dataset."""
