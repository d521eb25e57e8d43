"""Prompts in, completions out: samplers, beams, prompt batches, output files."""
