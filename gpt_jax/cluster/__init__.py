"""Many processes: bootstrap, watchdog, job scripts."""
