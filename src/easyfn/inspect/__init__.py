"""Looking at models: tables, cards, counts, activations."""
