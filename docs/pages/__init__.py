"""What the documentation site generates: pages of recorded studies, and the reference of configs and commands."""
