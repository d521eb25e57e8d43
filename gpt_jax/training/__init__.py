"""Around a step: session, checkpoints, probes, throughput, loss guard and the SDC check."""
