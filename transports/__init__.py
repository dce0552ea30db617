"""Transports move bytes between ranks and reduce them; they have never heard the word "ring"."""
