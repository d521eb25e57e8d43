"""Which arm is better: design, proof, execution, verdict."""
