"""One contract a file: formula, shapes, errors, reference, fake, registration."""
