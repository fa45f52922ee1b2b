"""Play: the session, its messages, its server and its page."""
