"""Rows on their way from a layer to what sums them: which ones, of which sequence, shared by which layers."""
