"""The ablation laboratory: plan arms, prove that they differ, run them, judge and report."""
