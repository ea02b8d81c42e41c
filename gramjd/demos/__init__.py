"""Runs that show the library at work; each is a sub-command of `gramjd demo`."""
