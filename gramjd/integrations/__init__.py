"""Mixins for training frameworks. None of them is imported before its framework is used."""
