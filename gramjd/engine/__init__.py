"""gramjd."""
