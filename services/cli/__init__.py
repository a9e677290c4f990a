"""The matryoshka command."""
