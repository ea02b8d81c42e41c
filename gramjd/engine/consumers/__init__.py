"""What is made of a parameter's Jacobian: its share of a Gramian, an update, a rectangle, columns."""
