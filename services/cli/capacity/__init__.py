"""How much of everything a deployment takes, on paper and simulated."""
