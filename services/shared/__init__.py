"""What two services need, each file one noun."""
