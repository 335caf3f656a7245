"""Thin Flower wrappers: what travels, what a node does, what the server does with the replies."""
