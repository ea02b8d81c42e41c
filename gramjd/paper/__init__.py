"""The experiments of the paper and what it left out; each is a sub-command of `gramjd paper`."""
