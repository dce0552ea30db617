"""Diffusion: a network learns to tell noise from picture, and pictures are made out of noise."""
