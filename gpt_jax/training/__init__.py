"""What surrounds a step: checkpoints, digests, probes, throughput, loss guard, SDC check."""
