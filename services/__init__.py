"""Matryoshka: serve, search and train embeddings that can be cut to any size."""
