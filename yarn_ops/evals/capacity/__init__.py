"""How far a model sees and how far it uses: the reading of a suite's scores."""
