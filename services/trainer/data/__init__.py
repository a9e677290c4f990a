"""What is learned from: checked before a job is queued."""
