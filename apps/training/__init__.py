"""Training: one engine for all bundles, its handlers, and the weights that it leaves."""
