"""What is deployed: images, a compose file and the Helm chart."""
