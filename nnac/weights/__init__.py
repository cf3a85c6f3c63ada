"""Weights below eight bits: codebooks, how their levels and indices are chosen, and how bytes are packed."""
