"""Linear probes: what the residual stream of each layer tells about a text, beyond what a probe can memorize."""
