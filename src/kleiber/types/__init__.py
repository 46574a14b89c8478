"""Types that every layer shares: batches and losses, and the base classes of what a user can add."""
