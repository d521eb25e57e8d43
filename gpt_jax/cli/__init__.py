"""A command line in, a Config out; the verbs of launch.py."""
