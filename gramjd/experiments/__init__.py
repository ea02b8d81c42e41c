"""The paper's experiments, what it left out, and the demo: the commands `gramjd paper ...` and `gramjd demo ...`."""
