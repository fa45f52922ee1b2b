"""Layers and codecs that several families share."""
