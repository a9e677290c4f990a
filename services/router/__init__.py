"""Documents stored at several sizes, searched in stages."""
