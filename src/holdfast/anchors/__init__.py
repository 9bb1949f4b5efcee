"""Anchors as things to keep: their file, their recipe, what they may be asked for, several as one."""
