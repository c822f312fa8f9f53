"""How long things take, side by side."""
