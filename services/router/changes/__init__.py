"""Changes of a live collection that take a while and survive a restart."""
