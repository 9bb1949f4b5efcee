"""Bringing a finished shift back inside a budget, in closed form: what is kept of each layer, and writing it down."""
