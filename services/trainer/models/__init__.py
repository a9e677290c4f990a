"""What training has made, and how it comes to be served."""
