"""Whole corpora into a collection: read, check, send, and go on where it stopped."""
