"""Which parameters of a loaded model a stage trains: low-rank updates beside them, or a part of them."""
