"""Jobs: from a request to a process, and how it ended."""
