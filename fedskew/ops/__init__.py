"""What operators of a real federation run: demo credentials and the doctor. Imports flwr and torch only inside checks."""
