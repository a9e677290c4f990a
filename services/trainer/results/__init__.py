"""What a job has made: measured, drawn, and written for other programs."""
