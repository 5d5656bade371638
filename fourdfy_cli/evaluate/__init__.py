"""Measures of finished scenes."""
