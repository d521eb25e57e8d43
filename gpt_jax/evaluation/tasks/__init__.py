"""One task per file: a model and a held-out split in, rows of scores out."""
