"""Differentially private training: settings and what they refuse, the accountant, the private gradient."""
