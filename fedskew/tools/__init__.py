"""What a person does with a finished run: evaluate, compare, plot, look at its attention and at who took part."""
