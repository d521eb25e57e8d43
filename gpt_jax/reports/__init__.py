"""A folder in, one HTML page out: run reports, study reports, figures."""
