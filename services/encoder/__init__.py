"""Texts in, vectors of every wanted size out."""
