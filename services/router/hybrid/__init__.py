"""Search by words beside search by vectors: a text index, and the fusion of both."""
