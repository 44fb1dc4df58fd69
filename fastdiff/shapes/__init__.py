"""The built-in model: generated scenes, an oracle that reads them, training, weights."""

GUIDANCE = 3.0  # the guidance of the model card
