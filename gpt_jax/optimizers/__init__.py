"""A gradient in, a direction out: Lion, Adafactor, Muon, SGD; schedules, muP, parameter groups."""
