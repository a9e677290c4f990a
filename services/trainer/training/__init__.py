"""The process of one job: what runs apart from the service."""
