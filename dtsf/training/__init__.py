"""How the network learns and is judged."""
