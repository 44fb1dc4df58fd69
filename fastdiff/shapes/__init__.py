"""The built-in model: generated scenes, an oracle that reads them, training, evaluation,
weights."""
