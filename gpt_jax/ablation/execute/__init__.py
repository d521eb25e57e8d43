"""Arms in, finished runs out: processes, worker pools, vmapped replicas."""
