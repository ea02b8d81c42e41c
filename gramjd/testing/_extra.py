"""Stops the import of `gramjd.testing` with the name of the extra where hypothesis is not installed."""

from gramjd.extras import require

require("hypothesis", "testing")
