"""Pretraining of the embedded backbone on rendered glyphs; needed to remake it, never to use it."""
