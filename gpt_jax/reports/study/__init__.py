"""The report of an ablation study."""
