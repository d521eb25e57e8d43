"""The run folder: config, metrics, events, result, provenance."""
