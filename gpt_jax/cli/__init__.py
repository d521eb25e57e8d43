"""A command line in, a Config out: verbs, flags, experiment files."""
