"""Documents to clean documents: personal data replaced; duplicates, contamination and low quality removed."""
