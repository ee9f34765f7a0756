"""Generation: a call is checked (`plan`), its prompt is run (`prompt`), and one of three loops makes the tokens."""
