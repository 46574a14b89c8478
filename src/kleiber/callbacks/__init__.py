"""Things that watch a stage while it trains; one concern a file, each says which metrics it logs."""
