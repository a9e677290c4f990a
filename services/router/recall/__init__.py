"""What plans keep and cost: measured, promised, and watched live."""
