"""What operators of a real federation run: demo credentials and the doctor. Only its checks import flwr and torch."""
