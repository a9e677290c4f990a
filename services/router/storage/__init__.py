"""Where collections are kept: Qdrant Edge in a folder, or a Qdrant server."""
