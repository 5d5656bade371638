"""A blind user study: its page, and the statistics of the answers."""
