"""Matryoshka training as jobs that survive a restart."""
