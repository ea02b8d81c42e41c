"""Readers of the six image sets' standard files, and the digits that come with scikit-learn."""
